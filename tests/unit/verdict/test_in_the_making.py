"""What a session's boots are beside those of a baseline that is no gate yet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from pytest_kvcache.api.verdict import verdict_of
from pytest_kvcache.baselines.update import levels
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.report import rows
from pytest_kvcache.verdict.cells import StoredBoot, StoredCell
from pytest_kvcache.verdict.gates import TokenGate
from pytest_kvcache.verdict.in_the_making import InTheMaking, changes, compare, progress, too_wide
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from tests.unit.verdict.make import CELL, FAMILY, LEVELS, figures, sibling, stored

TTFT, SPEED, DECODE = DEFAULT_METRICS
POLICY = Policy()


def added(old: StoredCell, *worse: Mapping[str, float] | float, canary: dict[str, float] | None = None) -> StoredCell:
    """Return a baseline with a session's boots behind its own, worse than LEVELS by these log ratios."""
    boots = (StoredBoot(run_id="now", recorded="2026-11-25", figures=figures(w), canary=canary or {}) for w in worse)
    return old.model_copy(update={"boots": (*old.boots, *boots)})


def beside(
    deviations: Sequence[float],
    *worse: Mapping[str, float] | float,
    siblings: Sequence[StoredCell] = (),
    policy: Policy = POLICY,
    boots: int = 6,
) -> InTheMaking:
    """Compare a session's boots with those of a baseline."""
    old = stored(deviations)
    return compare(old, added(old, *worse), siblings=siblings, family=FAMILY, policy=policy, baseline_boots=boots)


@pytest.mark.parametrize("worse", [-0.7, -0.01, 0.0, 0.01, 0.3, 2.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_old_is_the_boots_so_far_and_new_is_the_session_s(count: int, worse: float) -> None:
    """Each side is the geometric mean of its own boots, and more is worse for times as less is for rates."""
    deviations = [0.02 * n for n in range(count)]
    middle = sum(deviations) / count
    made = beside(deviations, worse, worse + 0.1, boots=12)
    assert [change.metric for change in made.changes] == list(DEFAULT_METRICS)
    for change in made.changes:
        turned = -1 if change.metric.higher_is_better else 1
        assert change.old == pytest.approx(LEVELS[change.metric.key] * math.exp(turned * middle))
        assert change.new == pytest.approx(LEVELS[change.metric.key] * math.exp(turned * (worse + 0.05)))
        assert change.effect == pytest.approx(worse + 0.05 - middle)
        assert (change.sd is None) == (count < 2)
        assert ("boots so far spread by" in change.text) == (count >= 2)
    assert made.boots == count + 2


def test_the_spread_so_far_is_that_of_the_older_boots() -> None:
    """Two boots that differ by a log ratio d have an sd of d / sqrt(2), whatever the new one is."""
    (change, *_) = beside([-0.05, 0.05], 3.0).changes
    assert change.sd == pytest.approx(0.1 / math.sqrt(2))


@pytest.mark.parametrize(
    ("boots", "recorded", "state"),
    [
        (1, 6, "no gate yet: 1 of 6 boots"),
        (3, 6, "no gate yet: 3 of 6 boots"),
        (5, 6, "no gate yet: 5 of 6 boots"),
        (6, 6, "no gate yet: 6 of 6 boots, the next session is gated"),
        (7, 12, "no gate yet: 7 of 12 boots"),
        (12, 12, "no gate yet: 12 of 12 boots, the next session is gated"),
        (1, 2, "no gate yet: 1 of 6 boots"),
        (2, 2, "no gate yet: 2 of 6 boots, and rules.baseline_boots = 2 records no more"),
    ],
)
def test_the_words_that_it_is_no_gate_yet(boots: int, recorded: int, state: str) -> None:
    """Boots are counted with the session's, against six or as many as the profile records."""
    assert progress(boots, policy=POLICY, baseline_boots=recorded) == (max(6, recorded), state)


@pytest.mark.parametrize(
    ("metric", "worse", "start"),
    [
        (TTFT, math.log(2), "TTFT (s): 0.5 -> 1, worse by +100.0%"),
        (TTFT, 0.0, "TTFT (s): 0.5 -> 0.5, worse by +0.0%"),
        (SPEED, math.log(2), "processing speed (prompt + generated tokens/s): 3000 -> 1500, worse by +100.0%"),
        (DECODE, -math.log(2), "decode throughput per request (tokens/s): 60 -> 120, worse by -50.0%"),
    ],
)
def test_a_gate_in_a_line(metric: object, worse: float, start: str) -> None:
    """Metric, old → new, how much worse, the spread so far, and that it is no gate yet."""
    one = next(m for m in DEFAULT_METRICS if m == metric)
    assert beside([0.0], worse).line(one) == f"{start}: no gate yet: 2 of 6 boots"
    assert (
        beside([0.0, 0.0], worse).line(one) == f"{start}, boots so far spread by 0.0% (sd): no gate yet: 3 of 6 boots"
    )


def test_a_whole_cell_is_told_by_what_is_worse_by_most() -> None:
    """Where no metric is named, the line is that of the largest loss, and all are listed."""
    made = beside([0.0, 0.0], {TTFT.key: -0.9, SPEED.key: 0.2, DECODE.key: 0.1})
    assert made.change().metric == SPEED
    assert made.line().startswith(SPEED.label)
    assert [line.partition(":")[0] for line in made.lines()][:3] == [metric.label for metric in DEFAULT_METRICS]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, None])
@pytest.mark.parametrize("side", ["old", "new"])
def test_a_figure_that_a_boot_lacks_is_no_number(side: str, bad: float | None) -> None:
    """One that is missing, zero or no number makes its side unknown: said, and never left out of a mean in silence."""
    whole = figures(0.1)
    lacks = {key: value for key, value in whole.items() if key != SPEED.key} | ({} if bad is None else {SPEED.key: bad})
    sides = {"old": [whole, whole], "new": [whole]} | {side: [whole, lacks]}
    ttft, speed, decode = changes(DEFAULT_METRICS, sides["old"], sides["new"])
    assert (ttft.effect, decode.effect) == pytest.approx((0, 0))
    assert (getattr(speed, side), speed.effect, speed.ratio) == (None, None, None)
    assert "not measured" in speed.text
    assert "worse" not in speed.text
    assert InTheMaking((speed, ttft, decode), 3, 6, "").change().metric != SPEED


def test_boots_that_spread_too_widely_to_gate_are_told_with_what_to_do() -> None:
    """Only the metric that spreads, whether among the older boots or by the new one; the change itself is there too."""
    made = beside([0.0, 0.01, 0.0], {TTFT.key: 1.2})
    assert [bool(change.wide) for change in made.changes] == [True, False, False]
    assert re.fullmatch(
        r"TTFT \(s\): with this session's, boots spread by [\d.]+%, [\d.]+% at the least: even so 6 of them tell only "
        r".*, and at most \+50% may pass: .*--update-baselines.*",
        made.lines(TTFT)[1],
    )
    assert len(made.lines(SPEED)) == 1
    old = stored([0.0, 0.6, -0.5])
    assert set(too_wide((old,), needed=6, family=FAMILY, policy=POLICY)) == {metric.key for metric in DEFAULT_METRICS}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_boots_that_spread_as_gates_may_are_no_matter(count: int) -> None:
    """A few boots resolve little; that is not held against them, since more are to come."""
    assert not any(change.wide for change in beside([0.02 * (-1) ** n for n in range(count)], 0.0).changes)


@pytest.mark.parametrize("boots", [2, 3, 5])
def test_forecasts_are_seldom_wrong(boots: int) -> None:
    """Of machines on which six boots just gate, one session in ten or fewer is told that no gate will come of it."""
    random = np.random.default_rng(5)
    fits = max(sd for sd in np.arange(0.02, 0.2, 0.002) if not _at_spread(sd))
    told = [
        bool(too_wide((stored(random.normal(0, fits, boots).tolist()),), needed=6, family=FAMILY, policy=POLICY))
        for _ in range(300)
    ]
    assert np.mean(told) < 0.1 + 3 * math.sqrt(0.09 / 300)
    far = [
        bool(too_wide((stored(random.normal(0, 8 * fits, boots).tolist()),), needed=6, family=FAMILY, policy=POLICY))
        for _ in range(100)
    ]
    assert np.mean(far) > 0.5


def _at_spread(sd: float) -> bool:
    """Return whether a gate is too wide whose boots have just this spread."""
    return levels((stored(sd=sd),), family=FAMILY, policy=POLICY)[0].margin > POLICY.widest_margin


def test_what_cannot_be_known_is_not_told() -> None:
    """One boot has no spread, and two have none about a slope on the machine's speed; a sibling's boots give it one."""
    alone = stored([0.9])
    adjusted = Policy(adjust_for="matmul_s")
    two = added(stored([0.0], canary={"matmul_s": 1.0}), 1.2, canary={"matmul_s": 1.1})
    assert too_wide((alone,), needed=6, family=FAMILY, policy=POLICY) == {}
    assert too_wide((two,), needed=6, family=FAMILY, policy=adjusted) == {}
    assert too_wide((two,), needed=6, family=FAMILY, policy=POLICY) != {}
    assert too_wide((alone, sibling([-0.9, 0.9])), needed=6, family=FAMILY, policy=POLICY) != {}


@pytest.mark.parametrize(
    ("policy", "wide"),
    [
        (POLICY, True),
        (Policy(widest_margin=9.0), False),
        (Policy(margins={metric.key: 9.0 for metric in DEFAULT_METRICS}), False),
        (Policy(widest_margin=9.0, day_sd=1.0), True),
    ],
    ids=["default", "wide rules", "wide margins", "days that differ"],
)
def test_too_wide_is_what_the_rules_say(policy: Policy, wide: bool) -> None:
    """The bound is the profile's, and drift from day to day counts as it does at a gate."""
    found = too_wide((stored([0.2, -0.2, 0.0]),), needed=6, family=FAMILY, policy=policy)
    assert bool(found) is wide


def test_a_gate_that_the_profile_declares_has_its_own_verdict() -> None:
    """Old -> new stands in verdict and properties of metrics and of the whole cell, and in those of no other gate."""
    made = beside([0.0, 0.0], {SPEED.key: math.log(2)})
    result = CellResult(cell=CELL, runs=(), boots=(), minutes=(), making=made)
    for gate in (SPEED, None):
        verdict, told = verdict_of(result, gate), rows.properties(result, gate)
        assert (verdict.metric, verdict.interval, verdict.margin) == (SPEED, None, None)
        assert verdict.worse_by == pytest.approx(1)
        assert verdict.reasons[0] == "no gate yet: 3 of 6 boots"
        assert (told["worse_by"], told["ratio"], told["baseline_boots"]) == (1.0, 0.5, 3)
        assert told["message"].count("no gate yet: 3 of 6 boots") == (1 if gate else len(DEFAULT_METRICS))
    assert verdict_of(result, TTFT).worse_by == pytest.approx(0)
    other = verdict_of(result, TokenGate())
    assert (other.old, other.reasons, rows.making_lines(result, TokenGate())) == (None, (), [])
    assert "message" not in rows.properties(result, TokenGate())
