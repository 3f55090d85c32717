"""Estimators of a boot, stopping within it, canaries."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.baselines import requests_table
from pytest_kvcache.campaign.comparability import workload_hash
from pytest_kvcache.report import terminal
from pytest_kvcache.verdict import canary
from pytest_kvcache.verdict.estimate import estimate, goodput
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.rounds import cut, enough, judged_figures, prefix, rounds_of, spreads, within_boot_errors
from pytest_kvcache.workload import reference_csv
from tests.unit.verdict.make import requests, sibling, stored

ROUND = 6.0


def test_ttft_of_a_boot() -> None:
    """It is the geometric mean over requests."""
    rows = requests(users=2, rounds=3)
    rows["first_token_s"] = rows["actual_start_s"] + np.where(rows["user"] == 1, 0.2, 0.8)
    assert judged_figures(rows)["ttft_geomean_s"] == pytest.approx(0.4)


def test_a_stalled_request_does_not_speak_for_a_boot() -> None:
    """One of fifty that took a minute counts as the next longest; of ten there is none to spare."""
    many, few = requests(users=5, rounds=10, noise=0.1), requests(users=2, rounds=5, noise=0.1)
    for rows, expected in ((many, 1.02), (few, 1.5)):
        stalled = rows.copy()
        stalled.loc[3, "first_token_s"] = rows["actual_start_s"][3] + 60.0
        moved = judged_figures(stalled)["ttft_geomean_s"] / judged_figures(rows)["ttft_geomean_s"]
        assert (moved < expected) == (rows is many)
        assert moved > 1


@given(st.floats(0.01, 100), st.integers(0, 20))
def test_ttft_scales(scale: float, seed: int) -> None:
    """Requests that all take so many times as long make a boot that does."""
    rows = requests(noise=0.3, seed=seed)
    longer = rows.assign(
        first_token_s=rows["actual_start_s"] + (rows["first_token_s"] - rows["actual_start_s"]) * scale
    )
    one, other = (judged_figures(r)["ttft_geomean_s"] for r in (rows, longer))
    assert other == pytest.approx(one * scale)


@given(st.integers(0, 47), st.floats(0.0, 5.0), st.integers(0, 20))
def test_no_request_that_takes_longer_makes_a_boot_look_faster(index: int, more_s: float, seed: int) -> None:
    """The figure never falls as one request's TTFT grows."""
    rows = requests(noise=0.3, seed=seed)
    later = rows.copy()
    later.loc[index, "first_token_s"] = float(rows["first_token_s"][index]) + more_s
    assert judged_figures(later)["ttft_geomean_s"] >= judged_figures(rows)["ttft_geomean_s"] * (1 - 1e-12)


@given(st.integers(0, 50), st.floats(0.0, 0.5))
def test_judged_figures_are_those_of_estimate(seed: int, noise: float) -> None:
    """Both ways to the same figure agree."""
    rows = requests(noise=noise, seed=seed)
    known = estimate(rows, duration_s=48)
    assert judged_figures(rows) == pytest.approx({m.key: known[m.key] for m in DEFAULT_METRICS})


def test_figures_that_cannot_be_had_are_absent() -> None:
    """A run without a finished request has none; impossible times give none either."""
    rows = requests()
    assert judged_figures(rows.assign(status="timed-out")) == {}
    assert "ttft_geomean_s" not in judged_figures(rows.assign(first_token_s=rows["actual_start_s"]))
    still = rows.assign(last_token_s=rows["first_token_s"])
    assert "decode_tokens_per_s" not in judged_figures(still)


def test_goodput_counts_requests_within_all_limits() -> None:
    """Limits that are given must all be met; a failed request meets none."""
    rows = requests(users=2, rounds=5)
    limits = {"duration_s": 30.0, "ttft_s": 0.6, "tpot_s": 0.03}
    assert goodput(rows, **limits).share == 1
    rows.loc[0, "status"] = "timed-out"
    rows.loc[1, "first_token_s"] = float(rows["actual_start_s"][1]) + 0.7
    rows.loc[2, "last_token_s"] = float(rows["first_token_s"][2]) + 1
    assert goodput(rows, **limits).share == pytest.approx(0.7)
    assert goodput(rows, **limits).per_s == pytest.approx(7 / 30)
    assert goodput(rows[:0], **limits).share == 0
    assert goodput(rows, duration_s=30.0, ttft_s=0.6).share == pytest.approx(0.8)
    assert goodput(rows, duration_s=30.0, e2el_s=1e-9).share == 0
    rows["generated_tokens"] = 1
    assert goodput(rows, **limits).share == pytest.approx(0.8)


def test_a_round_is_when_every_user_asks_once() -> None:
    """Rounds count by when a request was intended, so that a late one stays in its own."""
    rows = requests(users=6, rounds=4)
    assert (rounds_of(rows, ROUND) == rows["round"]).all()
    rows.loc[0, "actual_start_s"] = 20.0
    assert len(prefix(rows, rounds=1, round_s=ROUND)) == 6
    with pytest.raises(ValueError, match="a round of 0"):
        rounds_of(rows, 0)


def test_within_boot_errors_are_the_textbook_s() -> None:
    """They are what bootstrapping sessions finds."""
    rows = requests(users=40, rounds=6, noise=0.2)
    errors = within_boot_errors(rows, round_s=240.0 / 6)
    rng = np.random.default_rng(0)
    by_user = [group for _, group in rows.groupby("user")]
    drawn = [
        judged_figures(pd.concat([by_user[i] for i in rng.integers(0, 40, 40)], ignore_index=True)) for _ in range(200)
    ]
    for key in ("ttft_geomean_s", "decode_tokens_per_s"):
        assert errors[key] == pytest.approx(np.std([math.log(figures[key]) for figures in drawn]), rel=0.25)


def test_too_few_sessions_or_rounds_have_no_error() -> None:
    """Where nothing can be said of the noise, it is infinite, and the boot runs on."""
    errors = within_boot_errors(requests(users=3, rounds=3), round_s=ROUND)
    assert set(errors.values()) == {math.inf}
    assert within_boot_errors(requests().assign(status="broken"), round_s=ROUND)["tokens_per_s"] == math.inf


def test_a_boot_stops_once_its_noise_is_small() -> None:
    """It stops once its errors are under a third of the spread of boots, and not before the fourth round."""
    rows = requests(users=8, rounds=12, noise=0.05)
    wide = {m.key: 0.2 for m in DEFAULT_METRICS}
    assert [enough(rows, rounds=r, round_s=ROUND, spreads=wide) for r in (1, 3, 4)] == [False, False, True]
    narrow = {m.key: 0.01 for m in DEFAULT_METRICS}
    assert not enough(rows, rounds=12, round_s=ROUND, spreads=narrow)
    assert not enough(rows, rounds=12, round_s=ROUND, spreads={})


@given(st.floats(0.01, 100), st.integers(0, 20))
def test_stopping_does_not_look_at_the_level(scale: float, seed: int) -> None:
    """A run that is slower throughout stops at the same round: stopping does not favour a result."""
    rows = requests(noise=0.1, seed=seed)
    slower = rows.assign(
        first_token_s=rows["actual_start_s"] + (rows["first_token_s"] - rows["actual_start_s"]) * scale
    )
    one, two = (within_boot_errors(r, round_s=ROUND)["ttft_geomean_s"] for r in (rows, slower))
    assert one == pytest.approx(two, rel=1e-6)


def test_the_baseline_is_cut_to_the_same_rounds() -> None:
    """Each boot's figures become those of its first rounds."""
    runs = [requests(noise=0.1, seed=n) for n in range(6)]
    packed = requests_table.pack(runs)
    whole = requests_table.unpack(packed, requests_table.describe(packed, sum(map(len, runs))), where="x")
    base = stored().model_copy(update={"round_s": ROUND})
    short = cut(base, whole, DEFAULT_METRICS, rounds=3)
    for old, rows in zip(short.boots, runs, strict=True):
        assert old.figures == pytest.approx(judged_figures(prefix(rows, rounds=3, round_s=ROUND)), rel=1e-4)
    assert short.requests is None
    with pytest.raises(ValueError, match="no rounds"):
        cut(stored(), whole, DEFAULT_METRICS, rounds=3)
    with pytest.raises(ValueError, match="boot 1 of the baseline has no figures in its first 0 rounds"):
        cut(base, whole, DEFAULT_METRICS, rounds=0)


def test_spreads_of_a_tier() -> None:
    """They are the pooled ones that the decision uses."""
    assert spreads([stored(sd=0.03), sibling(sd=0.04)], DEFAULT_METRICS)["tokens_per_s"] == pytest.approx(
        math.sqrt(0.00125), rel=1e-6
    )


def test_a_canary_within_bounds_is_no_difference() -> None:
    """Ten percent either way, or what the baseline itself saw, is the same machine."""
    base = [{"matmul_s": 1.0}, {"matmul_s": 1.02}, {"matmul_s": 1.3}]
    assert canary.differences(base, [{"matmul_s": 1.29}, {"matmul_s": 0.93}]) == []
    assert canary.differences([], [{"matmul_s": 9.0}]) == []


def test_a_canary_out_of_bounds_names_reading_and_boot() -> None:
    """Slower, faster and not read at all are differences."""
    lines = canary.differences([{"matmul_s": 1.0, "read_s": 2.0}], [{"matmul_s": 1.2}, {"matmul_s": 0.8, "read_s": 2}])
    assert [line.split(" (")[0] for line in lines] == [
        "canary matmul_s: 1 -> 1.2 at boot 1",
        "canary matmul_s: 1 -> 0.8 at boot 2",
        "canary read_s: 2 ->",
    ]
    assert "from -9% to +10% is as before" in lines[0]
    with pytest.raises(ValueError, match="tolerance"):
        canary.differences([], [], tolerance=0)


def test_a_workload_hash_does_not_depend_on_order() -> None:
    """Equal parameters hash alike in whatever order, different ones do not."""
    assert workload_hash({"a": 1, "b": 2}) == workload_hash({"b": 2, "a": 1})
    assert workload_hash({"a": 1}) != workload_hash({"a": 2})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_only_positive_numbers_have_a_logarithm(value: float) -> None:
    """A metric refuses what cannot be put on the log scale."""
    with pytest.raises(ValueError, match="not a positive number"):
        DEFAULT_METRICS[0].log(value)
    assert DEFAULT_METRICS[0].log(2.0) == -DEFAULT_METRICS[1].log(2.0) == pytest.approx(math.log(2))


def with_yardsticks(rows: pd.DataFrame, seconds: float, *, hits: float = 0.2) -> pd.DataFrame:
    """Return a run whose users have hits that take `hits` seconds, and four yardsticks that take `seconds`."""
    users = rows.assign(first_token_s=rows["actual_start_s"] + hits)
    cold = rows.head(4).assign(user=[-1, -2, -3, -4], cached_tokens=0)
    return pd.concat([users, cold.assign(first_token_s=cold["actual_start_s"] + seconds)], ignore_index=True)


def test_yardsticks_have_figures_of_their_own() -> None:
    """Cold prefill is theirs alone, hits are held against it, and nothing else knows of them."""
    rows = requests()
    alone, beside = (
        estimate(each, duration_s=48)
        for each in (rows.assign(first_token_s=rows["actual_start_s"] + 0.2), with_yardsticks(rows, 0.8))
    )
    assert beside["ttft_cold_geomean_s"] == pytest.approx(0.8)
    assert beside["ttft_hit_over_cold"] == pytest.approx(0.25)
    assert {key: value for key, value in beside.items() if key in alone} == pytest.approx(alone)
    assert set(beside) - set(alone) == {"ttft_cold_geomean_s", "ttft_hit_over_cold", "yardsticks"}
    assert judged_figures(with_yardsticks(rows, 0.8)) == pytest.approx(judged_figures(with_yardsticks(rows, 5.0)))


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 2.0))
def test_a_slower_machine_moves_no_ratio_to_cold_prefill(times: float) -> None:
    """What slows hits and cold prefill alike is not in their ratio, and what slows hits alone is."""
    rows = requests()
    usual, slower = (estimate(with_yardsticks(rows, 0.8 * t, hits=0.2 * t), duration_s=48) for t in (1.0, times))
    assert slower["ttft_hit_over_cold"] == pytest.approx(usual["ttft_hit_over_cold"])
    assert slower["ttft_cold_geomean_s"] == pytest.approx(times * 0.8)
    tier = estimate(with_yardsticks(rows, 0.8, hits=0.2 * times), duration_s=48)
    assert tier["ttft_hit_over_cold"] == pytest.approx(times * 0.25)


def test_no_hits_have_no_ratio() -> None:
    """Where nothing came from a cache there is cold prefill and no ratio to it."""
    rows = with_yardsticks(requests(), 0.8).assign(cached_tokens=0)
    assert "ttft_hit_over_cold" not in estimate(rows, duration_s=48)


def test_answers_of_one_token_have_figures() -> None:
    """A load of one-token answers has TTFT and speed; what needs a second token is not a number, and never an error."""
    rows = requests(noise=0.1)
    rows = rows.assign(
        generated_tokens=pd.array([1] * len(rows), dtype="Int64"),
        last_token_s=rows["first_token_s"],
        token_times_s=rows["first_token_s"].map(lambda at: [at]),
    )
    found = estimate(rows, duration_s=48)
    assert found["ttft_geomean_s"] > 0
    assert found["tokens_per_s"] > 0
    lacking = {key for key, value in found.items() if math.isnan(value)}
    assert {"decode_tokens_per_s", "decode_mean_tokens_per_s", "itl_mean_s", "tpot_p50_s"} <= lacking
    assert all("decode" in key or key.startswith(("itl", "tpot")) for key in lacking)
    assert set(judged_figures(rows)) == {"ttft_geomean_s", "tokens_per_s"}
    assert within_boot_errors(rows, round_s=ROUND)["decode_tokens_per_s"] == math.inf
    text = "\n".join(terminal.run_lines(found))
    assert "ITL mean -, p99 - ms" in text
    assert "nan" not in text
    table = reference_csv.csv_table(rows, started_at=0.0)
    summed = reference_csv.summary(table, started_at=0.0, config_qps=1.0)
    assert summed is not None
    assert "Average generation throughput (per request): - tokens/req/s" in summed.lines()
