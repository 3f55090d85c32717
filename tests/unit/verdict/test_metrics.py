"""Metrics: their logarithms, and verdicts on any choice of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import BY_NAME, DEFAULT_METRICS, METRICS, Metric
from pytest_kvcache.verdict.paired import BootPair, decide_pairs
from pytest_kvcache.verdict.procedure import Boot, decide, incomparable
from tests.unit.verdict.make import FAMILY, OPTIONAL, UNIT, boot, evidence, stored, with_figures

STORAGE = BY_NAME["l2_load_bytes_per_s"]


def at(metric: Metric, worse: float, level: float = 0.4) -> dict[str, float]:
    """Return the figure of a boot that is worse than `level` by a log ratio."""
    return {metric.key: level * math.exp(-worse if metric.higher_is_better else worse)}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.short)
@pytest.mark.parametrize(("worse", "status"), [(0.0, "pass"), (0.5, "regressed"), (-0.5, "improved")])
def test_every_metric_is_judged_by_its_own_boots(metric: Metric, worse: float, status: str) -> None:
    """A profile that judges one metric passes, regresses and improves by it, in the direction that is worse for it."""
    levels = [at(metric, 0.02 * float(unit))[metric.key] for unit in UNIT]
    base = with_figures(stored(), {metric.key: levels})
    new = replace(boot(), figures=dict(boot().figures) | at(metric, worse))
    policy = Policy(metrics=(metric,))
    verdict = decide(evidence(new, new, new), base, family=FAMILY, policy=policy)
    assert (verdict.status, [gate.metric for gate in verdict.gates]) == (status, [metric])
    assert verdict.gates[0].old == pytest.approx(0.4)
    pairs = [
        BootPair(replace(boot(), figures=at(metric, 0.01 * n)), replace(boot(), figures=at(metric, worse)))
        for n in range(6)
    ]
    assert decide_pairs({1000: pairs}, family=FAMILY, policy=policy)[1000].status == status


@pytest.mark.parametrize("metric", [m for m in METRICS if not m.optional], ids=lambda metric: metric.short)
def test_a_metric_that_a_side_lacks_is_never_passed_over(metric: Metric) -> None:
    """A baseline without it is incomparable and says what records it anew; a boot without it is invalid."""
    base = with_figures(stored(), {metric.key: [0.4] * 6})
    lacking = base.model_copy(
        update={
            "boots": tuple(
                b.model_copy(update={"figures": {k: v for k, v in b.figures.items() if k != metric.key}})
                for b in base.boots
            )
        }
    )
    new = replace(boot(), figures=dict(boot().figures) | {metric.key: 0.4})
    policy = Policy(metrics=(metric,))
    verdict = decide(evidence(new), lacking, family=FAMILY, policy=policy)
    assert verdict.status == "incomparable"
    assert verdict.reasons == (
        f"{metric.label}: the baseline has no {metric.key}; record it anew with --update-baselines",
    )
    without: Boot = replace(new, figures={k: v for k, v in new.figures.items() if k != metric.key})
    verdict = decide(evidence(without), base, family=FAMILY, policy=policy)
    assert (verdict.status, verdict.reasons) == ("invalid", (f"boot 1: {metric.label} could not be measured",))


def test_what_no_side_has_of_an_optional_metric_is_not_judged() -> None:
    """A tier without a shared storage has no storage throughput; one that lost it is not passed over."""
    policy = Policy(metrics=(*DEFAULT_METRICS, STORAGE))
    plain = decide(evidence(boot(), boot(), boot()), stored(), family=FAMILY, policy=policy)
    assert plain.status == "pass"
    assert [gate.metric for gate in plain.gates] == list(DEFAULT_METRICS)
    had = with_figures(stored(), {STORAGE.key: [1e8] * 6})
    assert decide(evidence(boot()), had, family=FAMILY, policy=policy).status == "invalid"
    gained = replace(boot(), figures=dict(boot().figures) | {STORAGE.key: 1e8})
    assert decide(evidence(gained), stored(), family=FAMILY, policy=policy).status == "incomparable"


@pytest.mark.parametrize("metric", OPTIONAL, ids=lambda metric: metric.short)
def test_what_neither_has_keeps_nothing_from_being_compared(metric: Metric) -> None:
    """A boot may be added to a baseline that lacks an optional figure as it does; one that has it may not."""
    policy = Policy(metrics=(*DEFAULT_METRICS, metric))
    assert incomparable(evidence(boot()), stored(), policy) == ()
    gained = replace(boot(), figures=dict(boot().figures) | {metric.key: 1.0})
    [line] = incomparable(evidence(gained), stored(), policy)
    assert f"the baseline has no {metric.key}" in line


def test_a_tier_that_has_none_of_what_is_judged_is_undecided() -> None:
    """A profile that judges storage throughput alone says nothing of a tier without a shared storage."""
    policy = Policy(metrics=(STORAGE,))
    verdict = decide(evidence(boot()), stored(), family=FAMILY, policy=policy)
    reason = "this tier has none of what is judged: storage throughput of loads (bytes/s)"
    assert (verdict.status, verdict.reasons) == ("inconclusive", (reason,))
    pairs = [BootPair(boot(), boot())] * 2
    assert decide_pairs({1000: pairs}, family=FAMILY, policy=policy)[1000].reasons == (reason,)


@given(st.sampled_from(METRICS), st.floats(1e-9, 1e15))
def test_a_logarithm_goes_there_and_back(metric: Metric, value: float) -> None:
    """`natural` undoes `log`, a smaller value than `least` counts as `least`, and more is worse on the turned scale."""
    assert metric.measured({metric.key: value})
    assert metric.natural(metric.log(value)) == pytest.approx(max(value, metric.least))
    more = metric.log(value * 2) - metric.log(value)
    assert more <= 0 if metric.higher_is_better else more > 0


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.short)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, None])
def test_what_is_no_figure_is_not_measured(metric: Metric, value: float | None) -> None:
    """NaN, infinities and what no machine can do are no figures; zero is one of shares alone."""
    figures = {} if value is None else {metric.key: value}
    assert not metric.measured(figures)
    assert metric.measured({metric.key: 0.0}) == (metric.least > 0)
