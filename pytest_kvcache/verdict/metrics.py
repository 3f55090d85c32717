"""The metrics that are compared with a baseline, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number that a run yields.

    Args:
        key: Its name in results, baselines and tolerances; ends in its unit.
        label: Its name in tables.
        higher_is_better: Throughputs, as against times.
        short: Its name in test ids.
    """

    key: str
    label: str
    higher_is_better: bool
    short: str = ""

    def log(self, value: float) -> float:
        """Return the natural logarithm of `value`, turned so that more is worse for every metric.

        A difference of two such numbers is a log ratio: +log(1.10) is 10 % more time, or throughput down to 1/1.10. On
        this scale a doubling and a halving are equally far, effects multiply, and the spread of times and of rates is
        nearer to normal and to constant than on the plain one.

        Raises:
            ValueError: `value` is not a positive finite number.
        """
        if not 0 < value < math.inf:
            raise ValueError(f"{self.key} is not a positive number: {value!r}")
        return -math.log(value) if self.higher_is_better else math.log(value)


#: What boots are judged by; the rest is reported. Few: each gate costs all others sharpness (`looks.py`).
JUDGED: tuple[Metric, ...] = (
    Metric("ttft_geomean_s", "TTFT (s)", higher_is_better=False, short="ttft"),
    Metric("tokens_per_s", "processing speed (prompt + generated tokens/s)", higher_is_better=True, short="speed"),
    Metric("decode_tokens_per_s", "decode throughput per request (tokens/s)", higher_is_better=True, short="decode"),
)
