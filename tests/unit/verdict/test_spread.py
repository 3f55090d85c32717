"""What the machine's own speed explains is no change of what is tested, and costs what it must."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.power import drift
from pytest_kvcache.baselines import update
from pytest_kvcache.verdict import headline, spread
from pytest_kvcache.verdict.cells import Cell, StoredCell
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import Boot, CellVerdict, decide
from tests.unit.verdict.make import CELL, FAMILY, boot, evidence, stored

READING = "matmul_s"
SPEEDS = (-0.15, -0.1, 0.0, 0.05, 0.08, 0.12)
REST = (0.01, -0.02, 0.02, 0.0, -0.01, 0.0)
ADJUST = Policy(adjust_for=READING, canary_tolerance=9.0)
PLAIN = Policy(canary_tolerance=9.0)
logs = st.floats(-0.5, 0.5)


def baseline(
    speeds: Sequence[float] = SPEEDS, rest: Sequence[float] = REST, *, slope: float = 2.0, cell: Cell = CELL
) -> StoredCell:
    """Return a baseline whose boots are worse by `slope` times the log of the canary's reading, and by `rest`."""
    plain = stored([slope * x + r for x, r in zip(speeds, rest, strict=True)], cell=cell)
    boots = tuple(
        b.model_copy(update={"canary": {READING: math.exp(x)}}) for b, x in zip(plain.boots, speeds, strict=True)
    )
    return plain.model_copy(update={"boots": boots})


def new(speed: float, worse: float = 0.0, *, slope: float = 2.0) -> Boot:
    """Return a boot on a machine of that speed, worse by `worse` beside."""
    return boot(slope * speed + worse, canary={READING: math.exp(speed)})


def say(*boots: Boot, policy: Policy = ADJUST, base: StoredCell | None = None) -> CellVerdict:
    """Decide on boots against the baseline above."""
    return decide(evidence(*boots), base or baseline(), family=FAMILY, policy=policy)


def test_a_slower_machine_is_no_regression() -> None:
    """Boots that are slower as the machine is are level with the baseline; without the adjustment they are worse."""
    slow = [new(0.15)] * 3
    gate = say(*slow).gates[0]
    assert gate.effect == pytest.approx(0.0, abs=0.05)
    assert gate.explained == pytest.approx(0.3, abs=0.05)
    assert gate.new == pytest.approx(gate.old * math.exp(gate.effect + gate.explained))
    assert say(*slow, policy=PLAIN).gates[0].effect == pytest.approx(0.3, abs=0.01)
    assert gate.sd < say(*slow, policy=PLAIN).gates[0].sd / 4


def test_a_regression_on_a_faster_machine_is_seen() -> None:
    """What the faster machine hides is found, and the words tell the two apart."""
    fast = [new(-0.12, 0.3)] * 2
    verdict = say(*fast)
    assert verdict.status == "regressed"
    assert say(*fast, policy=PLAIN).status != "regressed"
    assert "beside -2" in headline.headline(verdict)
    assert "by the machine's speed, margin" in headline.headline(verdict)
    assert any("what the machine's speed does not explain" in note for note in verdict.notes)


def test_a_machine_far_from_what_the_baseline_saw_widens_the_interval() -> None:
    """The slope is known where the baseline has been; further away the interval grows, and the margin does not."""
    near, far = (say(new(x)).gates[0] for x in (0.0, 1.0))
    assert far.effect - far.lower > 2 * (near.effect - near.lower)
    assert far.upper - far.effect > 2 * (near.upper - near.effect)
    assert far.margin == near.margin


def test_the_slope_costs_a_degree_of_freedom() -> None:
    """Spread and margin are those of a fit with one parameter more, in verdict and baseline alike."""
    gate = say(new(0.0)).gates[0]
    fit = np.polyfit(SPEEDS, [2 * x + r for x, r in zip(SPEEDS, REST, strict=True)], 1, full=True)
    assert gate.df == 4
    assert gate.sd == pytest.approx(math.sqrt(fit[1][0] / 4))
    told = update.levels([baseline()], family=FAMILY, policy=ADJUST)[0]
    assert math.log1p(told.margin) == pytest.approx(gate.margin)
    assert told.sd == pytest.approx(gate.sd)


def test_contexts_share_the_slope() -> None:
    """Contexts of other levels lend their readings to one slope, each about its own mean."""
    other = baseline(SPEEDS, REST[::-1], cell=Cell("p", "m", "pnfs", 2000))
    both = spread.level([baseline(), other], DEFAULT_METRICS[0], adjust_for=READING)
    alone = spread.level([baseline()], DEFAULT_METRICS[0], adjust_for=READING)
    assert both.df == 9
    assert both.squares == pytest.approx(2 * alone.squares)
    assert both.slope == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("speeds", [None, (0.1,) * 6])
def test_without_readings_that_differ_nothing_is_adjusted(speeds: Sequence[float] | None) -> None:
    """A baseline that cannot know the slope is judged without one, and the notes say so."""
    base = stored() if speeds is None else baseline(speeds)
    ready = boot() if speeds is None else new(0.1)
    verdict = say(ready, base=base)
    assert verdict.gates == say(ready, base=base, policy=PLAIN).gates
    assert any(note.startswith("not adjusted for the machine's speed") for note in verdict.notes)


def test_a_baseline_too_small_for_a_slope_says_so() -> None:
    """Five boots have four degrees of freedom, and three once the slope has taken one."""
    small = baseline(SPEEDS[:5], REST[:5])
    policy = Policy(adjust_for=READING, canary_tolerance=9.0, least_boots=5)
    verdict = say(new(0.0), base=small, policy=policy)
    assert verdict.status == "inconclusive"
    assert verdict.reasons[0].endswith("of which the slope on the machine's speed takes one")


@given(st.lists(logs, min_size=6, max_size=6), st.lists(st.tuples(logs, logs), min_size=1, max_size=3), logs)
def test_the_unit_of_a_reading_is_irrelevant(rest: list[float], boots: list[tuple[float, float]], unit: float) -> None:
    """A canary that takes twice as long everywhere changes no bound."""
    one = say(*(new(x, w) for x, w in boots), base=baseline(rest=rest))
    two = say(
        *(boot(2 * x + w, canary={READING: math.exp(x + unit)}) for x, w in boots),
        base=baseline([x + unit for x in SPEEDS], [r - 2 * unit for r in rest]),
    )
    for a, b in zip(one.gates, two.gates, strict=True):
        assert (a.effect, a.lower, a.upper, a.margin) == pytest.approx((b.effect, b.lower, b.upper, b.margin), abs=1e-7)


@given(st.lists(logs, min_size=6, max_size=6), st.lists(st.tuples(logs, logs), min_size=1, max_size=3), logs)
def test_what_grows_with_the_machine_is_never_an_effect(
    rest: list[float], boots: list[tuple[float, float]], slope: float
) -> None:
    """Adding any multiple of the readings to all boots, old and new, changes neither effects nor spreads."""
    one = say(*(new(x, w) for x, w in boots), base=baseline(rest=rest))
    two = say(*(new(x, w, slope=slope) for x, w in boots), base=baseline(rest=rest, slope=slope))
    for a, b in zip(one.gates, two.gates, strict=True):
        assert (a.effect, a.sd, a.margin) == pytest.approx((b.effect, b.sd, b.margin), abs=1e-7)


@given(st.lists(logs, min_size=6, max_size=6), st.tuples(logs, logs), st.floats(0.0, 0.5))
def test_getting_worse_at_the_same_speed_never_helps(rest: list[float], one: tuple[float, float], more: float) -> None:
    """A boot that is worse on the same machine regresses no less and passes no more."""
    rank = {Outcome.IMPROVED: 0, Outcome.PASS: 1, Outcome.OPEN: 2, Outcome.TOO_WIDE: 2, Outcome.REGRESSED: 3}
    before, after = (say(new(one[0], one[1] + m), base=baseline(rest=rest)) for m in (0.0, more))
    for a, b in zip(before.gates, after.gates, strict=True):
        assert rank[a.outcome] <= rank[b.outcome] or abs(a.effect - b.effect) < 1e-12


@pytest.mark.parametrize("machine", [drift.Machine(), drift.Machine(slope=0.0), drift.Machine(blur=0.02)])
def test_simulated_alarms_keep_their_budget(machine: drift.Machine) -> None:
    """Over many sessions on a machine that drifts, the adjusted gate alarms as rarely as one that does not drift."""
    said = drift.play(machine, 4000, 7, baseline_boots=6, adjust=True, family=3)
    # A third of the session's 4 %, and three standard errors of the simulation.
    assert (said.outcome == Outcome.REGRESSED).mean() < 0.04 / 3 + 3 * math.sqrt(0.0133 / 4000)


def test_simulated_gates_are_the_products() -> None:
    """The simulation's outcome of a look is that of `decide` on the same boots."""
    said = drift.play(drift.Machine(), 1, 5, baseline_boots=6, adjust=True, family=FAMILY)
    rng, machine = np.random.default_rng(5), drift.Machine()
    x = np.cumsum(rng.standard_normal((1, 6)) * machine.step, -1)
    z = np.cumsum(rng.standard_normal((1, 3)) * machine.step, -1)
    z += x.mean(-1, keepdims=True) + rng.standard_normal((1, 1)) * machine.away
    y, w = (2 * v + rng.standard_normal(v.shape) * machine.sd for v in (x, z))
    base = baseline(x[0].tolist(), (y - 2 * x)[0].tolist())
    boots = [boot(float(b), canary={READING: math.exp(float(a))}) for a, b in zip(z[0], w[0], strict=True)]
    policy = Policy(adjust_for=READING, canary_tolerance=99.0, widest_margin=9.0)
    verdict = decide(evidence(*boots[: int(said.boots[0])]), base, family=FAMILY, policy=policy)
    assert verdict.gates[0].outcome == Outcome(int(said.outcome[0]))
    assert verdict.gates[0].margin == pytest.approx(float(said.margin[0]))


def test_a_context_without_readings_takes_the_adjustment_from_all() -> None:
    """Where a pooled context cannot be adjusted none is, and neither notes nor effects claim that one was."""
    other = stored(cell=Cell("p", "m", "pnfs", 2000))
    verdict = decide(evidence(new(0.1)), baseline(), family=FAMILY, siblings=[other], policy=ADJUST)
    assert verdict.gates[0].explained == 0.0
    assert [note.partition(":")[0] for note in verdict.notes] == ["not adjusted for the machine's speed"]
