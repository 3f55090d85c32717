"""The metrics that are compared with a baseline, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number that a run yields.

    Args:
        key: Its name in results, baselines and tolerances; ends in its unit.
        label: Its name in tables.
        higher_is_better: Throughputs, as against times.
    """

    key: str
    label: str
    higher_is_better: bool

    def worse_by(self, *, old: float, new: float) -> float:
        """Return by how much of `old` the value `new` is worse (0.1 = 10 %; negative where it is better)."""
        change = (new - old) / old
        return -change if self.higher_is_better else change


GATED: tuple[Metric, ...] = (
    Metric("ttft_mean_s", "TTFT mean (s)", higher_is_better=False),
    Metric("ttft_p90_s", "TTFT p90 (s)", higher_is_better=False),
    Metric("requests_per_s", "processing speed (requests/s)", higher_is_better=True),
    Metric("tokens_per_s", "processing speed (prompt + generated tokens/s)", higher_is_better=True),
    Metric("decode_tokens_per_s", "decode throughput per request (tokens/s)", higher_is_better=True),
)
