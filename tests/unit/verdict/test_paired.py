"""A/B without a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.power.sessions import INCONCLUSIVE, PASSED, REGRESSED, play_pairs
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, BootPair, PairedVerdict, decide_pairs, order
from pytest_kvcache.verdict.procedure import Boot
from tests.unit.verdict.make import FAMILY, OPTIONAL, boot

NOISE = np.array([0.01, -0.01, 0.005, -0.005, 0.008, -0.008])
differences = st.sampled_from(PAIRS_AT_LOOK).flatmap(lambda n: st.lists(st.floats(-0.5, 0.5), min_size=n, max_size=n))


def pairs(worse: Sequence[float], level: Sequence[float] | None = None) -> list[BootPair]:
    """Return pairs whose B is worse by these log ratios, on days of these levels."""
    return [BootPair(boot(a), boot(a + w)) for w, a in zip(worse, level or [0.0] * len(worse), strict=True)]


def say(*contexts: Sequence[float], family: int = 6, **more: object) -> PairedVerdict:
    """Decide on the first of these contexts."""
    groups = {1000 * (n + 1): pairs(worse) for n, worse in enumerate(contexts)}
    return decide_pairs(groups, family=family, **more)[1000]  # type: ignore[arg-type]


def test_the_order_cancels_a_steady_drift() -> None:
    """A b b a: over two pairs both engines have the same mean place in time."""
    assert order(4) == ("a", "b", "b", "a", "a", "b", "b", "a")
    places = {engine: [i for i, e in enumerate(order(2)) if e == engine] for engine in "ab"}
    assert sum(places["a"]) == sum(places["b"])


def test_equal_engines_pass_and_a_worse_one_regresses() -> None:
    """Without a change the second look passes at the latest; with +30 % B has regressed."""
    quiet = NOISE[:4].tolist()
    assert say(quiet, quiet).status == "pass"
    worse = say([q + math.log(1.3) for q in quiet], quiet)
    assert worse.status == "regressed"
    assert worse.gates[0].ratio == pytest.approx(1.3, rel=1e-3)
    assert say([q - math.log(1.3) for q in quiet], quiet).status == "improved"


def test_it_asks_for_blocks_and_ends() -> None:
    """What two pairs cannot tell asks for more; after six it is inconclusive, with the interval."""
    wild = [0.2, -0.15, 0.1, -0.2, 0.15, -0.1]
    assert say(wild[:2]).status == "needs-boot"
    assert say(wild[:2], another_block=False).status == "inconclusive"
    last = say(wild)
    assert last.status == "inconclusive"
    assert "margin +10%" in last.reasons[0]
    assert say(wild[:4], policy=Policy(looks=2)).status == "inconclusive"


def test_other_numbers_of_pairs_are_refused() -> None:
    """Looking after every pair would spend error that nobody budgeted."""
    with pytest.raises(ValueError, match="3 pairs; looks are at 2, 4, 6"):
        say([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="6 pairs"):
        say([0.0] * 6, policy=Policy(looks=2))


@pytest.mark.parametrize("metric", OPTIONAL, ids=lambda metric: metric.short)
def test_contexts_that_lack_an_optional_metric_are_judged_without_it(metric: Metric) -> None:
    """A context without hits is no fault, and lends nothing to the spread of one that has them."""
    policy = Policy(metrics=(*DEFAULT_METRICS, metric))
    without = pairs(NOISE.tolist())
    having = [
        BootPair(*(Boot({**b.figures, metric.key: 1.0 + n / 100}) for b in (pair.a, pair.b)))
        for n, pair in enumerate(without)
    ]
    told = decide_pairs({1000: having, 3500: without}, family=FAMILY, policy=policy)
    assert [[gate.df for gate in told[context].gates] for context in told] == [[10, 10, 10, 5], [10, 10, 10]]
    assert {verdict.status for verdict in told.values()} == {"pass"}
    lost = [BootPair(pair.a, b.b) for pair, b in zip(having, without, strict=True)]
    assert decide_pairs({1000: lost, 3500: without}, family=FAMILY, policy=policy)[1000].status == "invalid"


def test_a_fault_is_invalid_and_lends_no_spread() -> None:
    """A context with a fault is invalid; the others are decided without it."""
    broken = [BootPair(boot(faults=["a server failed"]), boot()), *pairs([9.0])]
    verdicts = decide_pairs({1000: broken, 2000: pairs(NOISE[:4].tolist())}, family=6)
    assert (verdicts[1000].status, verdicts[1000].reasons) == ("invalid", ("pair 1, A: a server failed",))
    assert verdicts[2000].gates[0].df == 3
    assert list(verdicts) == [1000, 2000]


@given(differences, st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6))
def test_only_differences_count(worse: list[float], days: list[float]) -> None:
    """What both boots of a pair have in common changes nothing."""
    plain = decide_pairs({1: pairs(worse)}, family=6)[1]
    moved = decide_pairs({1: pairs(worse, days[: len(worse)])}, family=6)[1]
    for one, two in zip(plain.gates, moved.gates, strict=True):
        assert one.effect == pytest.approx(two.effect, abs=1e-9)
        assert one.lower == pytest.approx(two.lower, abs=1e-6)


@given(differences)
def test_exchanging_a_and_b_mirrors_the_verdict(worse: list[float]) -> None:
    """B regressed against A exactly where A improved on B."""
    one = decide_pairs({1: pairs(worse)}, family=6)[1]
    two = decide_pairs({1: [BootPair(p.b, p.a) for p in pairs(worse)]}, family=6)[1]
    for there, back in zip(one.gates, two.gates, strict=True):
        if min(abs(there.lower), abs(abs(there.effect) - math.log(1.05))) > 1e-9:
            assert (there.outcome == Outcome.REGRESSED) == (back.outcome == Outcome.IMPROVED)


@given(differences, st.floats(0.0, 0.5))
def test_a_shift_to_the_worse_never_helps(worse: list[float], more: float) -> None:
    """With B worse throughout, nothing regressed un-regresses."""
    one, two = (decide_pairs({1: pairs(w)}, family=6)[1] for w in (worse, [x + more for x in worse]))
    for before, now in zip(one.gates, two.gates, strict=True):
        near = min(abs(before.lower), abs(before.effect - math.log(1.05))) < 1e-9
        assert near or before.outcome != Outcome.REGRESSED or now.outcome == Outcome.REGRESSED


@given(differences)
def test_the_order_of_pairs_is_irrelevant(worse: list[float]) -> None:
    """Pairs in another order give the same gates, to the last bit."""
    one, two = (decide_pairs({1: pairs(w)}, family=6)[1] for w in (worse, worse[::-1]))
    assert one.gates == two.gates


def test_simulated_pairs_decide_as_the_product_does() -> None:
    """On random pairs every context ends as `decide_pairs` ends it, look by look."""
    names = {PASSED: {"pass", "improved"}, REGRESSED: {"regressed"}, INCONCLUSIVE: {"inconclusive"}}
    fast = play_pairs(0.04, 30, seed=4, shift=0.08).status[:, 0]
    noise = np.random.default_rng(4).standard_normal((30, 2, 3, 6)) * 0.04
    noise[:, 0, 0, :] += 0.08
    for session, values in enumerate(noise):
        for context in range(2):
            for count in PAIRS_AT_LOOK:
                groups = {
                    c: [
                        BootPair(
                            boot(),
                            boot(dict(zip((m.key for m in DEFAULT_METRICS), values[c, :, i].tolist(), strict=True))),
                        )
                        for i in range(count)
                    ]
                    for c in range(2)
                }
                verdict = decide_pairs(groups, family=6)[context]
                if verdict.status != "needs-boot":
                    assert verdict.status in names[int(fast[session, context])]
                    break


def test_false_alarms_stay_in_their_budget() -> None:
    """Between equal engines no more than the budget's share of sessions raises an alarm."""
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(300):
        noise = rng.standard_normal((2, 6)) * 0.04
        for count in PAIRS_AT_LOOK:
            groups = {c: pairs(noise[c, :count].tolist()) for c in range(2)}
            if any(v.status == "regressed" for v in decide_pairs(groups, family=6).values()):
                alarms += 1
                break
    assert alarms <= 300 * 0.04 + 3 * math.sqrt(300 * 0.04 * 0.96)
