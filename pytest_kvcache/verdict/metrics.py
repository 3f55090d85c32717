"""The metrics that may be compared with a baseline, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Bounds of what can be judged: a request of a nanosecond, and a storage of a petabyte a second.
_LEAST, _MOST = 1e-9, 1e15


@dataclass(frozen=True)
class Metric:
    """One number that a run yields.

    Args:
        key: Its name in results, baselines and tolerances; ends in its unit.
        label: Its name in tables.
        higher_is_better: Throughputs and shares, as against times.
        short: Its name in test ids.
        least: What a smaller value counts as: a share may be zero, which has no logarithm.
        optional: A tier may have none of it: what neither the baseline nor the boots have is not judged.
    """

    key: str
    label: str
    higher_is_better: bool
    short: str = ""
    least: float = 0.0
    optional: bool = False

    def log(self, value: float) -> float:
        """Return the natural logarithm of `value`, turned so that more is worse for every metric.

        A difference of two such numbers is a log ratio: +log(1.10) is 10 % more time, or throughput down to 1/1.10. On
        this scale a doubling and a halving are equally far, effects multiply, and the spread of times and of rates is
        nearer to normal and to constant than on the plain one.

        Raises:
            ValueError: `value` is not a positive finite number.
        """
        value = max(value, self.least)
        if not 0 < value < math.inf:
            raise ValueError(f"{self.key} is not a positive number: {value!r}")
        return -math.log(value) if self.higher_is_better else math.log(value)

    def natural(self, log: float) -> float:
        """Return the value that has this turned logarithm."""
        return math.exp(-log if self.higher_is_better else log)

    def measured(self, figures: Mapping[str, float]) -> bool:
        """Return whether figures of a boot have this one, so that it has a logarithm."""
        value = figures.get(self.key, math.nan)
        return math.isfinite(value) and _LEAST <= max(value, self.least) <= _MOST

    def of(self, figures: Mapping[str, float]) -> float:
        """Return the turned logarithm of this one of a boot's figures; raises ValueError where it is not there."""
        return self.log(figures.get(self.key, math.nan))


#: What boots are judged by where a profile names nothing else. Few: each gate costs all others sharpness.
DEFAULT_METRICS: tuple[Metric, ...] = (
    Metric("ttft_geomean_s", "TTFT (s)", higher_is_better=False, short="ttft"),
    Metric("tokens_per_s", "processing speed (prompt + generated tokens/s)", higher_is_better=True, short="speed"),
    Metric("decode_tokens_per_s", "decode throughput per request (tokens/s)", higher_is_better=True, short="decode"),
)


def _times() -> Iterator[Metric]:
    for name, label in (("ttft", "TTFT"), ("itl", "ITL"), ("tpot", "TPOT"), ("e2el", "E2E latency")):
        for what in ("mean", "p50", "p90", "p99"):
            yield Metric(f"{name}_{what}_s", f"{label} {what} (s)", higher_is_better=False, short=f"{name}_{what}")


def _rates() -> Iterator[Metric]:
    yield Metric("requests_per_s", "processing speed (requests/s)", higher_is_better=True, short="requests_per_s")
    for key, label in (
        ("cached_share", "share of prompt tokens from caches"),
        ("goodput_share", "share of requests within the SLO"),
        ("goodput_per_s", "requests within the SLO (requests/s)"),
    ):
        yield Metric(key, label, higher_is_better=True, short=key, least=1e-3)
    key = "l2_load_bytes_per_s"
    yield Metric(key, "storage throughput of loads (bytes/s)", higher_is_better=True, short=key, optional=True)


def _apart() -> Iterator[Metric]:
    yield Metric("ttft_cold_geomean_s", "TTFT of cold prefill (s)", higher_is_better=False, short="compute")
    key = "ttft_hit_over_cold"
    yield Metric(key, "TTFT of hits over that of cold prefill", higher_is_better=False, short="tier", optional=True)
    key = "cpu_s_per_request"
    yield Metric(key, "processor time of the run per request (s)", higher_is_better=False, short="cpu")


def judged_of(metrics: Sequence[Metric], boots: Sequence[Mapping[str, float]]) -> tuple[Metric, ...]:
    """Return the metrics without those optional ones that none of these boots has."""
    return tuple(m for m in metrics if not m.optional or any(m.measured(figures) for figures in boots))


#: All that a profile may name.
METRICS: tuple[Metric, ...] = (*DEFAULT_METRICS, *_times(), *_rates(), *_apart())
BY_NAME: Mapping[str, Metric] = {name: metric for metric in METRICS for name in (metric.key, metric.short)}
#: Those that need yardsticks in the workload, and those that are counted within an SLO, which the profile has to say.
OF_YARDSTICKS = frozenset({"ttft_cold_geomean_s", "ttft_hit_over_cold"})
OF_SLO = frozenset({"goodput_share", "goodput_per_s"})
#: How those begin that need a second token in an answer.
OF_SECOND_TOKENS = ("decode_", "itl_", "tpot_")
_QUANTILE = re.compile(r"_p(\d+)_s$")


def least_requests(key: str) -> int:
    """Return how many requests a figure needs: a quantile q needs 1/(1 - q), so that one of them lies beyond it.

    Quantiles of ITL are over the gaps between streamed tokens, of which a request has many.
    """
    found = _QUANTILE.search(key)
    if found is None or key.startswith("itl"):
        return 1
    return math.ceil(100 / (100 - int(found.group(1))))
