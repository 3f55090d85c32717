"""The decision on boots against a baseline."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_kvcache.baselines.update import levels
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.headline import deciding_gate
from pytest_kvcache.verdict.in_the_making import too_wide
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric
from pytest_kvcache.verdict.procedure import Boot, CellVerdict, Evidence, decide, share
from tests.unit.verdict.make import FAMILY, OPTIONAL, UNIT, boot, evidence, figures, sibling, stored, with_figures

TEN = math.log(1.10)
effects = st.floats(-0.6, 0.6)
boots_of_effects = st.lists(effects, min_size=1, max_size=3)
baselines = st.lists(st.floats(-0.2, 0.2), min_size=6, max_size=12)
families = st.integers(3, 60)


def say(*worse: float, **more: object) -> CellVerdict:
    """Decide on boots that are worse by these log ratios, with a sibling to pool with."""
    arguments = {"family": FAMILY, "siblings": [sibling()], **more}
    return decide(evidence(*map(boot, worse)), stored(), **arguments)  # type: ignore[arg-type]


def test_no_change_passes_on_the_first_boot() -> None:
    """A boot like the baseline's decides at once: the second is not started."""
    verdict = say(0.0)
    assert (verdict.status, verdict.boots, verdict.fixed_boots) == ("pass", 1, 3)
    assert all(gate.outcome == Outcome.PASS and gate.upper < gate.margin for gate in verdict.gates)
    assert verdict.final


def test_a_gross_change_regresses_on_the_first_boot() -> None:
    """A change of thirty percent needs no second boot either."""
    verdict = say(math.log(1.3))
    assert verdict.status == "regressed"
    gate = deciding_gate(verdict)
    assert gate is not None
    assert gate.metric == DEFAULT_METRICS[0]
    assert gate.ratio == pytest.approx(1.3)
    assert share(gate.effect) == pytest.approx(0.3)


def test_in_between_it_asks_for_another_boot() -> None:
    """What one boot cannot tell asks for another, and after three is inconclusive, with the interval."""
    assert say(0.07).status == "needs-boot"
    assert not say(0.07).final
    assert say(0.07, 0.07).status == "needs-boot"
    last = say(0.07, 0.07, 0.07)
    assert last.status == "inconclusive"
    assert "between" in last.reasons[0]
    assert "margin" in last.reasons[0]


def test_without_another_boot_open_is_inconclusive() -> None:
    """Where no boot can be had, an open gate is inconclusive rather than waited for."""
    assert say(0.07, another_boot=False).status == "inconclusive"


def test_improved_says_so_and_succeeds() -> None:
    """The mirror of a regression succeeds, and says that the baseline is stale."""
    verdict = say(-0.3)
    assert verdict.status == "improved"


def test_one_gate_regresses_a_cell() -> None:
    """One worse metric is not bought back by two better ones."""
    worse = {"tokens_per_s": 0.3, "ttft_geomean_s": -0.3, "decode_tokens_per_s": -0.3}
    verdict = decide(evidence(boot(worse)), stored(), family=FAMILY, siblings=[sibling()])
    assert verdict.status == "regressed"
    gate = deciding_gate(verdict)
    assert gate is not None
    assert gate.metric.key == "tokens_per_s"
    assert gate.new < gate.old


def test_a_small_certain_change_is_no_regression() -> None:
    """Below the least effect nothing regresses, however little boots spread; above it, it does."""
    quiet = stored(sd=0.001)
    assert decide(evidence(boot(math.log(1.049))), quiet, family=FAMILY).status == "pass"
    assert decide(evidence(boot(math.log(1.051))), quiet, family=FAMILY).status == "regressed"


def test_boots_that_do_not_spread_at_all() -> None:
    """A spread of zero divides nothing by zero."""
    constant = stored([0.0] * 6)
    assert decide(evidence(boot(0.0)), constant, family=FAMILY).status == "pass"
    assert decide(evidence(boot(0.06)), constant, family=FAMILY).status == "regressed"


def test_order_of_the_reasons_not_to_decide() -> None:
    """Faults come before a missing baseline, that before another environment, that before a small baseline."""
    faulty = boot(0.0, faults=["3 requests failed"])
    assert decide(evidence(faulty), None, family=FAMILY).reasons == ("boot 1: 3 requests failed",)
    assert decide(evidence(boot()), None, family=FAMILY).status == "no-baseline"
    other = decide(evidence(boot(), keys={"hardware.cpu": "y"}), stored([0.0, 0.1]), family=FAMILY)
    assert (other.status, other.reasons) == ("incomparable", ("hardware.cpu: x -> y",))


def test_another_workload_or_canary_is_incomparable() -> None:
    """Every key, hash and reading that differs is named."""
    slow = boot(0.0, canary={"matmul_s": 1.3})
    verdict = decide(evidence(slow, workload="0" * 64), stored(canary={"matmul_s": 1.0}), family=FAMILY)
    assert verdict.status == "incomparable"
    assert [line.split(":")[0] for line in verdict.reasons] == ["workload hash", "canary matmul_s"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, None])
def test_a_figure_that_is_none_is_invalid(value: float | None) -> None:
    """A metric that is missing or not a positive number makes the boot invalid, never a pass."""
    broken = {k: v for k, v in {**figures(), "tokens_per_s": value}.items() if v is not None}
    verdict = decide(evidence(boot(), Boot(broken)), stored(), family=FAMILY)
    assert verdict.status == "invalid"
    assert verdict.reasons[0].startswith("boot 2: processing speed")


def test_a_small_baseline_passes_nothing_and_asks_for_nothing() -> None:
    """Fewer than six boots are inconclusive at once, with the numbers; a gross change still regresses."""
    four, other = stored([-0.03, 0.0, 0.02, 0.01]), sibling([0.03, 0.0, -0.02, 0.01])
    verdict = decide(evidence(boot(0.0)), four, family=FAMILY, siblings=[other])
    assert verdict.status == "inconclusive"
    assert verdict.reasons == ("the baseline has 4 boots, gates need 6",)
    assert [gate.outcome for gate in verdict.gates] == [Outcome.OPEN] * 3
    # Level or better, a gate of it is open: a test of that gate alone must not pass either.
    mixed = {"ttft_geomean_s": 1.0, "tokens_per_s": 0.0, "decode_tokens_per_s": -1.0}
    gates = decide(evidence(boot(mixed)), four, family=FAMILY, siblings=[other]).gates
    assert [gate.outcome for gate in gates] == [Outcome.REGRESSED, Outcome.OPEN, Outcome.OPEN]
    assert decide(evidence(boot(1.0)), four, family=FAMILY, siblings=[other]).status == "regressed"
    single = decide(evidence(boot(5.0)), stored([0.0]), family=FAMILY)
    assert (single.status, single.gates) == ("inconclusive", ())
    assert single.reasons[0] == "the baseline has 1 boot, gates need 6"
    # Without an interval there are still two numbers, and a person may see that one is a hundred times the other.
    assert single.reasons[1].startswith("TTFT (s): ")
    assert "worse by +14741%, with too few boots to tell that from chance" in single.reasons[1]


def test_a_baseline_that_can_tell_nothing_passes_nothing() -> None:
    """Where the margin would have to be wider than allowed, the gate says why, and wastes no boots."""
    verdict = decide(evidence(boot(0.0)), stored(sd=0.3), family=FAMILY)
    assert verdict.status == "inconclusive"
    assert verdict.gates[0].outcome == Outcome.TOO_WIDE
    assert "boots spread by 35" in verdict.reasons[0]
    assert decide(evidence(boot(3.0)), stored(sd=0.3), family=FAMILY).status == "regressed"


def test_more_boots_than_looks_are_refused() -> None:
    """Measuring again until it passes is refused."""
    with pytest.raises(ValueError, match="4 boots for at most 3 looks"):
        say(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="0 boots"):
        say()


def test_contexts_of_the_same_tier_are_pooled() -> None:
    """Siblings lend degrees of freedom; those of another environment, tier or the cell itself do not."""
    lone = decide(evidence(boot()), stored(), family=FAMILY)
    other = stored(cell=sibling().address, keys={"hardware.cpu": "y"})
    assert lone.gates[0].df == 5
    assert say(0.0).gates[0].df == 10
    assert say(0.0, siblings=[other, stored()]).gates[0].df == 5
    assert say(0.0).gates[0].margin < lone.gates[0].margin


def _with(metric: Metric, sd: float = 0.03) -> StoredCell:
    """Return a baseline whose boots have one figure more, about 1."""
    return with_figures(stored(), {metric.key: [metric.natural(float(unit) * sd) for unit in UNIT]})


@pytest.mark.parametrize("metric", OPTIONAL, ids=lambda metric: metric.short)
def test_a_context_that_lacks_an_optional_metric_lends_it_nothing(metric: Metric) -> None:
    """Where vLLM alone has hits at a short context and none at a long one, each is judged by what it has."""
    policy = Policy(metrics=(*DEFAULT_METRICS, metric))
    short, long = _with(metric), sibling()
    new = Boot({**boot().figures, metric.key: 1.0})
    verdict = decide(evidence(new), short, family=FAMILY, siblings=[short, long], policy=policy)
    assert (verdict.status, [gate.df for gate in verdict.gates]) == ("pass", [10, 10, 10, 5])
    at_long = Evidence([boot()], long.comparability, long.workload)
    other = decide(at_long, long, family=FAMILY, siblings=[short, long], policy=policy)
    assert (other.status, [gate.df for gate in other.gates]) == ("pass", [10, 10, 10])
    assert [each.metric for each in levels([short, long], family=FAMILY, policy=policy)] == list(policy.metrics)
    assert [each.metric for each in levels([long, short], family=FAMILY, policy=policy)] == list(DEFAULT_METRICS)
    loose = [_with(metric, sd=3.0), long]
    assert set(too_wide(loose, needed=6, family=FAMILY, policy=policy)) == {metric.key}
    assert too_wide(loose[::-1], needed=6, family=FAMILY, policy=policy) == {}


def test_a_context_that_spreads_more_keeps_its_own_spread() -> None:
    """Quiet contexts of the tier lend degrees of freedom, and do not narrow the interval of a noisy one."""
    quiet = [sibling(sd=0.005, context=n) for n in (2000, 3000)]
    gate = decide(evidence(boot()), stored(sd=0.04), family=FAMILY, siblings=quiet).gates[0]
    assert gate.df == 15
    assert gate.sd == pytest.approx(0.04)


def test_boots_of_one_session_are_noted() -> None:
    """A baseline that cannot know what differs between days says so."""
    assert "one session" in decide(evidence(boot()), stored(sessions=1), family=FAMILY).notes[-1]
    assert decide(evidence(boot()), stored(sessions=3), family=FAMILY).notes == ()


def test_drift_between_days_widens_what_it_must() -> None:
    """A declared drift from day to day widens interval and margin, less so for a baseline of many days."""
    plain, drift = Policy(), Policy(day_sd=0.02)
    widths = []
    for policy, sessions in ((plain, 1), (drift, 3), (drift, 2), (drift, 1)):
        gate = decide(evidence(boot()), stored(sessions=sessions), family=FAMILY, policy=policy).gates[0]
        widths.append((gate.effect - gate.lower, gate.upper - gate.effect, gate.margin))
    for column in zip(*widths, strict=True):
        assert list(column) == sorted(column)
        assert len(set(column)) == len(column)


def test_drift_that_boots_show_already_is_not_counted_twice() -> None:
    """Against boots that are each of a day of its own, one new boot needs no allowance for days beside their spread."""
    plain, drift = (
        decide(evidence(boot()), stored(sessions=6), family=FAMILY, policy=policy).gates[0]
        for policy in (Policy(), Policy(day_sd=0.02))
    )
    assert (drift.lower, drift.upper) == pytest.approx((plain.lower, plain.upper))
    assert drift.margin > plain.margin  # which is that of three boots of one day


def test_drift_of_one_metric_widens_that_one_alone() -> None:
    """A drift that is declared for a metric leaves the others as they are, and one of zero takes it back."""

    def margins(policy: Policy) -> list[float]:
        return [gate.margin for gate in decide(evidence(boot()), stored(), family=FAMILY, policy=policy).gates]

    plain = margins(Policy())
    ttft, *others = margins(Policy(day_sds={"ttft_geomean_s": 0.1}))
    assert ttft > 2 * plain[0]
    assert others == plain[1:]
    drift = margins(Policy(day_sd=0.1, day_sds={"ttft_geomean_s": 0.0}))
    assert drift[0] == plain[0]
    assert drift[1] > plain[1]


@given(baselines, boots_of_effects, st.floats(1e-3, 1e3), families)
def test_units_do_not_matter(base: list[float], worse: list[float], scale: float, family: int) -> None:
    """Measuring then and now in another unit changes no outcome and no bound."""
    plain = decide(evidence(*map(boot, worse)), stored(base), family=family)
    scaled_base = stored(base).model_copy(
        update={
            "boots": tuple(
                b.model_copy(update={"figures": {k: v * scale for k, v in b.figures.items()}})
                for b in stored(base).boots
            )
        }
    )
    scaled_boots = [Boot({k: v * scale for k, v in figures(w).items()}) for w in worse]
    scaled = decide(evidence(*scaled_boots), scaled_base, family=family)
    for one, two in zip(plain.gates, scaled.gates, strict=True):
        assert one.lower == pytest.approx(two.lower, abs=1e-9)
        assert one.margin == pytest.approx(two.margin, abs=1e-9)
        edges = (one.lower, one.upper - one.margin, abs(one.effect) - math.log(1.05), one.margin - math.log(1.5))
        mirrored = one.effect + (one.effect - one.lower)
        if min(map(abs, (*edges, mirrored))) > 1e-9:
            assert one.outcome == two.outcome


@given(baselines, boots_of_effects, families, st.integers(0, 2), st.floats(0.0, 0.5))
def test_getting_worse_never_helps(base: list[float], worse: list[float], family: int, which: int, more: float) -> None:
    """With one boot worse in all, nothing regressed un-regresses and nothing comes to pass."""
    after = list(worse)
    after[which % len(worse)] += more
    one, two = (decide(evidence(*map(boot, w)), stored(base), family=family) for w in (worse, after))
    rank = {Outcome.IMPROVED: 0, Outcome.PASS: 1, Outcome.OPEN: 2, Outcome.TOO_WIDE: 2, Outcome.REGRESSED: 3}
    for before, now in zip(one.gates, two.gates, strict=True):
        assert rank[before.outcome] <= rank[now.outcome] or abs(now.effect - before.effect) < 1e-12
    if one.status == "regressed":
        assert two.status == "regressed"


@given(baselines, boots_of_effects, families)
def test_improved_mirrors_regressed(base: list[float], worse: list[float], family: int) -> None:
    """Turning all data around turns `regressed` into `improved` and back, gate by gate."""
    one = decide(evidence(*map(boot, worse)), stored(base), family=family)
    two = decide(evidence(*(boot(-w) for w in worse)), stored([-b for b in base]), family=family)
    for there, mirrored in zip(one.gates, two.gates, strict=True):
        assume(min(abs(there.lower), abs(abs(there.effect) - math.log(1.05))) > 1e-9)
        assert (there.outcome == Outcome.REGRESSED) == (mirrored.outcome == Outcome.IMPROVED)
        assert there.effect == pytest.approx(-mirrored.effect, abs=1e-9)


@given(baselines, boots_of_effects, families)
def test_pass_and_regressed_exclude_each_other(base: list[float], worse: list[float], family: int) -> None:
    """On the same data a cell that passes has no regressed gate, and the bounds are those that the words promise."""
    verdict = decide(evidence(*map(boot, worse)), stored(base), family=family)
    if verdict.status == "pass":
        assert all(g.outcome == Outcome.PASS for g in verdict.gates)
    for gate in verdict.gates:
        regressed = gate.lower > 0 and gate.effect >= math.log1p(0.05)
        assert (gate.outcome == Outcome.REGRESSED) == regressed
        if gate.outcome == Outcome.PASS:
            assert gate.upper < gate.margin
            assert not regressed


@given(baselines, st.lists(effects, min_size=2, max_size=3), families)
def test_the_order_of_boots_is_irrelevant(base: list[float], worse: list[float], family: int) -> None:
    """Every order of old and of new boots gives the same verdict, to the last bit."""
    first = decide(evidence(*map(boot, worse)), stored(base), family=family)
    for order in itertools.permutations(worse):
        assert decide(evidence(*map(boot, order)), stored(base[::-1]), family=family).gates == first.gates


@given(baselines, boots_of_effects, families, st.integers(1, 40))
def test_a_larger_family_never_alarms_more(base: list[float], worse: list[float], family: int, more: int) -> None:
    """Declaring more gates makes each less easily regressed."""
    few, many = (decide(evidence(*map(boot, worse)), stored(base), family=f) for f in (family, family + more))
    for one, two in zip(few.gates, many.gates, strict=True):
        assert two.lower <= one.lower
        assert one.outcome == Outcome.REGRESSED or two.outcome != Outcome.REGRESSED


def test_siblings_order_is_irrelevant() -> None:
    """Spreads are pooled in an order of their own."""
    others = [sibling(sd=0.021, context=2000), sibling(sd=0.037, context=3000), sibling((UNIT * 0.03)[1:].tolist())]
    one, two = (say(0.02, siblings=s) for s in (others, others[::-1]))
    assert one == two


def test_a_policy_of_its_own() -> None:
    """A profile's margins are used, by metric."""
    policy = Policy(margins={"ttft_geomean_s": 0.4})
    gates = say(0.0, policy=policy).gates
    assert gates[0].margin == pytest.approx(math.log(1.4))
    assert gates[1].margin < math.log(1.2)
    assert gates[1].margin > TEN
