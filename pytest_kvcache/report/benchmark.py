"""Gates as rows of pytest-benchmark, through its documented surface: a timer of ours that replays what was measured.

pytest-benchmark presents and exports; it measures nothing here. It knows only seconds, less is better: throughputs are
published as seconds per token, request or byte, and shares not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.verdict.metrics import Metric

_CLOCK = pytest.StashKey["ReplayClock"]()
FIXTURE = "benchmark"


class ReplayClock:
    """A clock on which the next rounds take as long as they are told to."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._last_s = 0.0

        def replayed() -> float:
            self._last_s = self._times.popleft() if self._times else self._last_s
            return self._last_s

        #: A plain function: pytest-benchmark writes its name down.
        self.timer: Callable[[], float] = replayed

    def take(self, samples_s: list[float]) -> None:
        """Have the next rounds take these seconds, one each."""
        now = self._last_s
        for sample in samples_s:
            self._times += [now, now + sample]
            now += sample


def mark(item: pytest.Item) -> None:
    """Give an item's benchmark the replayed clock, beside what its own marker says."""
    if not item.config.pluginmanager.hasplugin("benchmark") or _CLOCK in item.stash:
        return
    clock = item.stash[_CLOCK] = ReplayClock()
    own = item.get_closest_marker(FIXTURE)
    options: dict[str, Any] = dict(own.kwargs) if own else {}
    options |= {"timer": clock.timer, "warmup": False}
    item.add_marker(pytest.mark.benchmark(**options), append=False)


def publish(benchmark: Any, item: pytest.Item, result: CellResult, gate: Metric, facts: dict[str, Any]) -> None:
    """Make a row of a gate; does nothing where pytest-benchmark is replaced, disabled or not there.

    Args:
        benchmark: The fixture, whoever provides it.
        item: The test.
        result: What was measured.
        gate: Which metric.
        facts: For `extra_info`.
    """
    clock = item.stash.get(_CLOCK, None)
    if clock is None or not hasattr(benchmark, "extra_info") or not hasattr(benchmark, "pedantic"):
        return
    group, samples = _samples(result, gate)
    if not samples:
        return
    benchmark.extra_info.update(facts)
    benchmark.group = benchmark.group or group
    clock.take(samples)
    benchmark.pedantic(_nothing, rounds=len(samples), iterations=1)


def hide(config: pytest.Config) -> None:
    """Have pytest-benchmark print no table where all of its rows are ours: the session's own has the same figures.

    Its files and hooks are as ever, and so is its table where a test of somebody else's is in it.
    """
    session = getattr(config, "_benchmarksession", None)
    rows = getattr(session, "benchmarks", ())
    if session is not None and rows and all({"tier", "metric"} <= set(getattr(row, "extra_info", ())) for row in rows):
        session.quiet = True


def _nothing() -> None:
    """Be what is timed by a clock that replays."""


#: Metrics that a boot has one of: what the seconds of a row are, which are one over it. Shares are no times.
_OF_A_BOOT = {
    "tokens_per_s": "processing speed: seconds per token, prompt and generated",
    "requests_per_s": "processing speed: seconds per request",
    "goodput_per_s": "goodput: seconds per request within the SLO",
    "l2_load_bytes_per_s": "storage: seconds per loaded byte",
}


def _samples(result: CellResult, gate: Metric) -> tuple[str, list[float]]:
    """Return what a row's seconds are, and those of each request, token gap or boot; none of what is no time."""
    if gate.key in _OF_A_BOOT:
        group = _OF_A_BOOT[gate.key]
        found = [run.estimates.get(gate.key, 0.0) for run in result.runs]
        return group, [1 / value for value in found if value > 0]
    rows = result.rows[result.rows["status"] == "ok"]
    ttft = rows["first_token_s"] - rows["actual_start_s"]
    tpot = (rows["last_token_s"] - rows["first_token_s"]) / (rows["generated_tokens"] - 1).clip(lower=1)
    groups = {
        "ttft": ("TTFT", ttft),
        "decode": ("decode: seconds per token of a request", tpot),
        "tpot": ("TPOT", tpot),
        "itl": ("ITL", rows["token_times_s"].map(np.diff).explode()),
        "e2el": ("E2E latency", rows["last_token_s"] - rows["actual_start_s"]),
    }
    group, seconds = groups.get(gate.key.partition("_")[0], ("", pd.Series(dtype="float64")))
    seconds = seconds.astype("float64")
    return group, [float(v) for v in seconds[seconds > 0]]


def facts(result: CellResult, gate: Metric, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what a row's `extra_info` has: percentiles, hit rate, verdict, interval, boots, where the data are."""
    e = result.estimates
    figures = ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "itl_mean_s", "cached_share", "tokens_per_s", "requests_per_s")
    return {
        "tier": result.label,
        "context_tokens": result.context_tokens,
        "metric": gate.key,
        **{key: e[key] for key in figures if key in e},
        **outcome,
        "folder": str(result.folder),
    }
