"""Exact gates, gains, limits and metrics in a profile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_kvcache import values
from pytest_kvcache.config.cautions import cautions
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.tiers.catalogue import parse
from pytest_kvcache.verdict.gates import TokenGate, worst
from pytest_kvcache.verdict.metrics import METRICS, Metric
from tests.stubs.engine import toml


def stub(text: str) -> Profile:
    """Return the profile of a kvcache.toml."""
    return parse(text.encode(), source=Path("kvcache.toml"), where="kvcache.toml").profile("stub")


@pytest.mark.parametrize(
    ("gates", "named"),
    [
        ("limits = { ttft_p98_s = 1 }", "limits.ttft_p98_s: unknown figure; allowed: ttft_geomean_s"),
        ("limits = { ttft_s = 1 }", "limits.ttft_s: unknown figure"),
        ("limits = { goodput_share = 0.9 }", "limits.goodput_share needs slo"),
        ("limits = { cached_share = 60 }", "limits.cached_share: 60 is no share of 0 to 1"),
        (
            "limits = { ttft_p99_s = 1 }",
            "a run of 12 requests says nothing of it; it needs 100, workload.duration_s = 5",
        ),
        ("limits = { e2el_p99_s = 1 }", "it needs 100"),
        ("limits = { failed = -1 }", "greater than or equal to 0"),
        ("limits = { failed = true }", "gates.limits"),
        ("limits = { failed = nan }", "gates.limits"),
        ("slo = {}", "name at least one of ttft_s"),
        ("slo = { ttft = 1 }", "gates.slo.ttft"),
        ("tokens = 1.5", "gates.tokens"),
        ("tokens = -0.1", "gates.tokens"),
        ("token = 0", "gates.token"),
        ('metrics = ["ttft", "speeed"]', "metrics: unknown metric 'speeed'; allowed: ttft, speed, decode, ttft_mean"),
        ('metrics = ["ttft", "ttft_geomean_s"]', "metrics: ttft_geomean_s is there twice"),
        ('metrics = ["ttft_p99"]', "metrics: ttft_p99_s: a run of 12 requests says nothing of it; it needs 100, work"),
        ('metrics = ["goodput_share"]', "goodput_share needs slo"),
        ('metrics = "ttft"', "gates.metrics"),
        ('gains = { "pnfs over gpu" = { e2el_p99 = 0.5 } }', "gains.pnfs over gpu: e2el_p99_s: a run of 12 requests"),
        ('gains = { "pnfs over gpu" = { goodput_per_s = 2 } }', "goodput_per_s needs slo"),
        ('metrics = ["tier"]', "ttft_hit_over_cold needs requests that no cache can have: set workload.yardsticks"),
        ("limits = { ttft_cold_geomean_s = 1 }", "set workload.yardsticks"),
        ('metrics = ["ttft"]\n[profiles.stub.rules.margins]\nspeed = 0.2', "gates.metrics does not name it"),
    ],
)
def test_a_gate_that_cannot_be_told_is_refused(gates: str, named: str) -> None:
    """What is declared wrongly, or cannot be decided by a run of this length, is an error before anything boots."""
    text = toml(more=f"\n[profiles.stub.gates]\n{gates}\n")
    with pytest.raises(ConfigError) as error:
        stub(text)
    assert "profiles.stub" in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("gates", "named"),
    [
        ('metrics = ["ttft", "decode"]', "gates.metrics: decode_tokens_per_s: answers of one token have none"),
        ('metrics = ["itl_mean"]', "gates.metrics: itl_mean_s: answers of one token have none"),
        ("limits = { tpot_mean_s = 1 }", "gates.limits.tpot_mean_s: answers of one token have none"),
        ('gains = { "pnfs over gpu" = { decode = 2 } }', "gates.gains.pnfs over gpu: decode_tokens_per_s: answers of"),
    ],
)
def test_a_gate_that_needs_a_second_token_is_refused(gates: str, named: str) -> None:
    """What answers of one token do not have is refused before anything boots, and taken where answers are longer."""
    text = toml(more=f"\n[profiles.stub.gates]\n{gates}\n")
    stub(text)
    with pytest.raises(ConfigError) as error:
        stub(text.replace("answer_tokens = 5", "answer_tokens = 1"))
    assert named in str(error.value)


def test_an_exact_gate_needs_a_workload_that_repeats() -> None:
    """Where boots do not send the same, tokens may only be gated with a tolerance."""
    text = toml().replace("users = 3", 'mode = "compat"\nusers = 3') + "\n[profiles.stub.gates]\ntokens = 0.0\n"
    with pytest.raises(ConfigError, match="give the share of the tokens that may differ"):
        stub(text)
    assert stub(text.replace("tokens = 0.0", "tokens = 0.05")).gates.tokens == 0.05


@pytest.mark.parametrize(("mode", "gates"), [("exact", [TokenGate(0.0)]), ("compat", [])])
def test_an_exact_gate_by_default_is_none_where_a_workload_does_not_repeat(mode: str, gates: list[TokenGate]) -> None:
    """A profile that takes its gates from another and has a workload of its own needs no word about them."""
    text = toml().replace("users = 3", f'mode = "{mode}"\nusers = 3') + '\n[profiles.stub.gates]\ntokens = "auto"\n'
    assert list(stub(text).declared_gates) == gates


@pytest.mark.parametrize(
    ("statuses", "first"),
    [
        (["recorded", "regressed"], "regressed"),
        (["updated", "inconclusive"], "inconclusive"),
        (["pass", "incomparable", "no-baseline"], "no-baseline"),
        (["regressed", "invalid"], "invalid"),
        (["measured"], "measured"),
    ],
)
def test_a_cell_has_the_status_that_a_person_must_see_first(statuses: list[str], first: str) -> None:
    """A failed exact gate or limit is not hidden by a comparison that succeeds."""
    assert worst(statuses) == first


@pytest.mark.parametrize(
    ("gains", "named"),
    [
        ('"pnfs" = { ttft = 0.6 }', "'pnfs' does not name two tiers"),
        ('"gpu over gpu" = { ttft = 0.6 }', "does not name two tiers"),
        ('"pnfs over gpu" = {}', "name at least one metric, such as ttft, speed"),
        ('"pnfs over gpu" = { ttft = 0 }', "gains"),
        ('"pnfs over gpu" = { ttft = "best" }', "gains"),
        ('"pnfs over gpu" = { itl = 1 }', "unknown metric 'itl'; allowed: ttft, speed"),
    ],
)
def test_a_gain_that_names_nothing_is_refused(gains: str, named: str) -> None:
    """Gains name two tiers and at least one ratio."""
    with pytest.raises(ConfigError) as error:
        stub(toml(more=f"\n[profiles.stub.gates.gains]\n{gains}\n"))
    assert named in str(error.value)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.short)
def test_a_metric_is_named_by_its_key_or_its_short_name(metric: Metric) -> None:
    """Every metric may be what a profile is judged by, under both of its names, and has a label of its own."""
    for name in (metric.key, metric.short):
        gates = f'metrics = ["{name}"]\nslo = {{ ttft_s = 1 }}'
        profile = stub(
            toml(qps=300, more=f"\n[profiles.stub.gates]\n{gates}\n").replace("users = 3", "users = 3\nyardsticks = 2")
        )
        assert profile.judged == (metric,)
        assert profile.policy.metrics == (metric,)
        assert [gate.short for gate in values.gates(profile)] == [metric.short]
    assert sum(metric.label == other.label for other in METRICS) == 1


def test_answers_of_one_token_have_no_decode_gate() -> None:
    """By default decode throughput is judged only where answers have more than one token."""
    one = toml().replace("answer_tokens = 5", "answer_tokens = 1")
    assert [metric.short for metric in stub(one).judged] == ["ttft", "speed"]
    assert [metric.short for metric in stub(toml()).judged] == ["ttft", "speed", "decode"]


def test_yardsticks_are_judged_where_they_are() -> None:
    """A workload with yardsticks has TTFT judged in its two parts, unless the profile names its metrics."""
    with_some = toml().replace("users = 3", "users = 3\nyardsticks = 2")
    assert [metric.short for metric in stub(with_some).judged] == ["tier", "compute", "speed"]
    named = with_some + '\n[profiles.stub.gates]\nmetrics = ["ttft"]\n'
    assert [metric.short for metric in stub(named).judged] == ["ttft"]


def test_what_more_metrics_cost_is_said() -> None:
    """A caution tells how much larger a change must be, and that boots run to their end; the defaults cost nothing."""
    names = '"ttft", "speed", "decode", "ttft_p50", "itl_p50", "tpot_p50"'
    few, many = (
        cautions(stub(toml(boots=6, more=f"\n[profiles.stub.gates]\nmetrics = [{each}]\n")), offloads=False)
        for each in ('"ttft", "speed"', names)
    )
    assert few == []
    assert re.fullmatch(
        r"gates.metrics names 6 metrics: a change must be up to [1-9]\d?% larger to be told than with 3.*", many[0]
    )
    assert (
        many[1]
        == "boots run to their end, since ttft_p50_s, itl_p50_s, tpot_p50_s cannot be told from their first rounds"
    )
