"""Gain gates: a tier against another one, decided on paired log ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.verdict.cells import Cell, StoredCell
from pytest_kvcache.verdict.gains import NOTHING_KNOWN, Gain, KnownSpread, decide_gain, known_spread
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric
from pytest_kvcache.verdict.paired import BootPair
from pytest_kvcache.verdict.procedure import Boot
from tests.unit.verdict import make

TTFT, SPEED, DECODE = DEFAULT_METRICS
POLICY = Policy()


def pairs(key: str, ratios: list[float], *, hour: float = 1.0) -> list[BootPair]:
    """Return pairs whose second boot has a figure so many times that of the first, each pair in its own hour."""
    return [BootPair(Boot({key: hour**n}), Boot({key: ratio * hour**n})) for n, ratio in enumerate(ratios)]


@pytest.mark.parametrize(
    ("metric", "bound", "ratios", "status"),
    [
        (TTFT, 0.6, [0.20, 0.21], "pass"),
        (TTFT, 0.6, [0.55, 0.58, 0.50, 0.56], "needs-boot"),
        (TTFT, 0.6, [1.0, 1.02, 0.98, 1.01], "regressed"),
        (TTFT, 0.6, [0.62, 0.6, 0.59, 0.61, 0.58, 0.6], "inconclusive"),
        (SPEED, 1.1, [2.0, 2.01], "pass"),
        (SPEED, 1.1, [1.0, 1.001, 0.999, 1.0], "regressed"),
        (SPEED, 1.1, [1.05, 1.15], "needs-boot"),
        (DECODE, 2.0, [3.0, 3.1, 2.95, 3.0], "pass"),
    ],
)
def test_a_gain_is_decided_against_the_ratio_that_is_asked(
    metric: Metric, bound: float, ratios: list[float], status: str
) -> None:
    """Times must be at most so many times the other tier's, throughputs at least; what is near needs more boots."""
    gain = Gain("pnfs", "gpu", metric, bound)
    found = decide_gain(gain, {3500: pairs(metric.key, ratios)}, family=2, policy=POLICY)[3500]
    assert found.status == status
    assert found.ratio == pytest.approx(float(np.exp(np.log(ratios).mean())))
    assert found.interval[0] <= found.ratio <= found.interval[1]


@given(hour=st.floats(0.5, 2.0))
def test_what_the_hour_does_to_both_tiers_cancels(hour: float) -> None:
    """A machine that gets faster or slower from pair to pair changes no decision."""
    gain = Gain("pnfs", "gpu", TTFT, 0.6)
    found = decide_gain(gain, {1: pairs(TTFT.key, [0.2, 0.21, 0.19, 0.2], hour=hour)}, family=2, policy=POLICY)[1]
    assert found.status == "pass"
    assert found.ratio == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("known", [NOTHING_KNOWN, KnownSpread(0.12, 5)], ids=["alone", "with baselines"])
@pytest.mark.parametrize("true_ratio", [0.6, 0.7])
def test_errors_are_kept(true_ratio: float, known: KnownSpread) -> None:
    """At the bound a false pass comes no more often than its budget, and so does a false alarm; beyond it less."""
    random = np.random.default_rng(7)
    gain, sessions, passed, alarms = Gain("pnfs", "gpu", TTFT, 0.6), 1500, 0, 0
    for _ in range(sessions):
        ratios = true_ratio * np.exp(random.normal(0, 0.1, 6))
        for count in (2, 4, 6):
            status = decide_gain(
                gain,
                {1: pairs(TTFT.key, list(ratios[:count]))},
                family=1,
                policy=POLICY,
                another_block=count < 6,
                known=known,
            )[1].status
            if status != "needs-boot":
                break
        passed += status == "pass"
        alarms += status == "regressed"
    # Three standard errors of the share above each budget.
    assert passed / sessions < POLICY.pass_error + 3 * math.sqrt(POLICY.pass_error / sessions)
    if true_ratio == 0.6:
        assert alarms / sessions < POLICY.regression_error + 3 * math.sqrt(POLICY.regression_error / sessions)
    else:
        assert alarms / sessions > 0.2


def test_baselines_let_two_pairs_decide() -> None:
    """What the baselines of both tiers say of their spread stands in for pairs that were not measured."""
    gain, two = Gain("pnfs", "gpu", TTFT, 0.6), {1: pairs(TTFT.key, [0.2, 0.25])}
    assert decide_gain(gain, two, family=2, policy=POLICY)[1].status == "needs-boot"
    assert decide_gain(gain, two, family=2, policy=POLICY, known=KnownSpread(0.15, 11))[1].status == "pass"
    lost = {1: pairs(TTFT.key, [1.0, 1.1])}
    assert decide_gain(gain, lost, family=2, policy=POLICY, known=KnownSpread(0.1, 11))[1].status == "regressed"


@pytest.mark.parametrize("figures", [{}, {TTFT.key: math.nan}, {TTFT.key: 0.0}])
def test_a_boot_that_says_nothing_decides_nothing(figures: dict[str, float]) -> None:
    """A figure that is missing, or a boot with a fault, makes the gain invalid and lends nothing to other contexts."""
    gain = Gain("pnfs", "gpu", TTFT, 0.6)
    good = pairs(TTFT.key, [0.2, 0.21])
    bad = [BootPair(Boot({TTFT.key: 1.0}), Boot(figures)), good[1]]
    found = decide_gain(gain, {1: bad, 2: good}, family=2, policy=POLICY)
    assert found[1].status == "invalid"
    assert "pair 1, pnfs" in found[1].reasons[0]
    assert found[2].status == "pass"
    faulty = [BootPair(Boot({TTFT.key: 1.0}, faults=["no hits"]), good[0].b), good[1]]
    assert decide_gain(gain, {1: faulty}, family=2, policy=POLICY)[1].reasons == ("pair 1, gpu: no hits",)


def _baselines(
    sessions: int, *, hours: float = 0.3, sd: float = 0.05, boots: int = 12
) -> tuple[StoredCell, StoredCell]:
    """Return baselines of two tiers: boots share the hour of their session (sd of log TTFT), and spread besides."""
    random = np.random.default_rng(3)
    hour = random.normal(0, hours, sessions)[np.arange(boots) % sessions]
    a, b = (
        make.stored((hour + random.normal(0, sd, boots)).tolist(), sessions=sessions, cell=Cell("p", "m", tier, 1000))
        for tier in ("pnfs", "gpu")
    )
    return a, b


def test_sessions_that_booted_both_tiers_are_pairs() -> None:
    """What the hour did to both is not in the spread of their ratio, though each tier alone spreads by it."""
    a, b = _baselines(12)
    known = known_spread([a], [b], TTFT, least_boots=6)
    assert known.df == 11
    assert known.sd == pytest.approx(0.05 * math.sqrt(2), rel=0.5)


def test_baselines_of_other_sessions_share_no_hour() -> None:
    """Where too few sessions booted each tier once, the spreads of both tiers add up: an upper bound."""
    for a, b in (_baselines(2), _baselines(5, boots=5)):
        known = known_spread([a], [b], TTFT, least_boots=6)
        assert known.df == len(a.boots) - 1
        assert known.sd > 0.2


def test_contexts_lend_their_pairs_to_each_other() -> None:
    """Each context has its own mean ratio, and all of them one spread."""
    a, b = _baselines(12)
    both = [[c, c.model_copy(update={"cell": c.cell.model_copy(update={"context_tokens": 3500})})] for c in (a, b)]
    known = known_spread(both[0], both[1][::-1], TTFT, least_boots=6)
    assert known.df == 22
    assert known.sd == pytest.approx(known_spread([a], [b], TTFT, least_boots=6).sd)


def test_a_tier_without_a_baseline_lends_nothing() -> None:
    """One baseline alone says nothing of a ratio, and neither does one of a single boot."""
    a, _ = _baselines(12)
    assert known_spread([a], [], TTFT, least_boots=6) == NOTHING_KNOWN
    assert known_spread([a], [make.stored([0.0])], TTFT, least_boots=6) == NOTHING_KNOWN
