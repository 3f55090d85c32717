"""Limits: bounds without a baseline."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.verdict.limits import AT_LEAST, AT_MOST, Limit, decide_limit
from pytest_kvcache.verdict.metrics import least_requests


@given(st.sampled_from([*AT_MOST, *AT_LEAST]), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_times_are_at_most_and_rates_at_least(key: str, bound: float, value: float) -> None:
    """A figure on the good side of its bound, or on it, passes; on the other side it fails."""
    good = value <= bound if key in AT_MOST else value >= bound
    found = decide_limit(Limit(key, bound), {key: value}, requests=1000)
    assert found.status == ("pass" if good else "regressed")
    assert decide_limit(Limit(key, bound), {key: bound}, requests=1000).status == "pass"


@pytest.mark.parametrize(
    ("key", "needed"),
    [
        ("ttft_p50_s", 2),
        ("ttft_p90_s", 10),
        ("ttft_p99_s", 100),
        ("e2el_p99_s", 100),
        ("tpot_p90_s", 10),
        ("itl_p99_s", 1),
        ("ttft_mean_s", 1),
        ("failed", 1),
    ],
)
def test_a_quantile_needs_requests_beyond_it(key: str, needed: int) -> None:
    """A p99 of fewer than 100 requests passes nothing; what is over the limit even so fails."""
    assert least_requests(key) == needed
    limit = Limit(key, 1.0)
    assert decide_limit(limit, {key: 0.5}, requests=needed).status == "pass"
    if needed > 1:
        assert decide_limit(limit, {key: 0.5}, requests=needed - 1).status == "inconclusive"
        assert decide_limit(limit, {key: 1.5}, requests=needed - 1).status == "regressed"


@pytest.mark.parametrize("figures", [{}, {"ttft_p50_s": math.nan}])
def test_a_figure_that_is_not_there_is_undecided(figures: dict[str, float]) -> None:
    """What could not be measured keeps no limit and breaks none."""
    found = decide_limit(Limit("ttft_p50_s", 1.0), figures, requests=100)
    assert found.status == "inconclusive"
    assert "could not be measured" in found.reason
