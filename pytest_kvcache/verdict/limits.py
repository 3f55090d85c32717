"""Limits: absolute bounds that figures of a session must keep, without a baseline (pure).

A quantile needs requests beyond it: the p99 of 20 requests is their maximum, which says nothing of the 99th percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_kvcache.verdict.metrics import METRICS, least_requests

#: Figures that may have a limit, with their names in tables; times and failures are at most, all others at least.
AT_MOST = {
    **{metric.key: metric.label for metric in METRICS if not metric.higher_is_better},
    "failed": "failed requests",
}
AT_LEAST = {metric.key: metric.label for metric in METRICS if metric.higher_is_better}


@dataclass(frozen=True)
class Limit:
    """One bound.

    Args:
        key: Of the figure, one of `AT_MOST` or `AT_LEAST`.
        bound: In the figure's own unit; it is allowed itself.
    """

    key: str
    bound: float

    @property
    def label(self) -> str:
        """The figure's name in tables."""
        return AT_MOST.get(self.key) or AT_LEAST[self.key]

    @property
    def short(self) -> str:
        """Its name in test ids."""
        return f"limit-{self.key}"

    @property
    def relation(self) -> str:
        """`at most` or `at least`."""
        return "at most" if self.key in AT_MOST else "at least"

    def holds(self, value: float) -> bool:
        """Return whether a figure keeps the bound; NaN keeps none."""
        return value <= self.bound if self.key in AT_MOST else value >= self.bound


@dataclass(frozen=True)
class LimitVerdict:
    """What a limit came to.

    Args:
        status: `regressed` where the figure does not keep it, `inconclusive` where it cannot be told.
        value: The figure over all boots; NaN where it is not there.
        reason: Why it cannot be told.
    """

    status: Literal["pass", "regressed", "inconclusive"]
    value: float
    reason: str = ""


def decide_limit(limit: Limit, figures: Mapping[str, float], *, requests: int) -> LimitVerdict:
    """Hold a figure of all boots of a session against its limit.

    Args:
        limit: Which.
        figures: Over all boots.
        requests: Finished requests of all boots.
    """
    value = figures.get(limit.key, math.nan)
    if math.isnan(value):
        return LimitVerdict("inconclusive", value, f"{limit.label} could not be measured")
    needed = least_requests(limit.key)
    if requests < needed and limit.holds(value):
        return LimitVerdict(
            "inconclusive", value, f"{limit.label} of {requests} requests says nothing: it needs {needed}"
        )
    return LimitVerdict("pass" if limit.holds(value) else "regressed", value)
