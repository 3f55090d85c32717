"""The decision: one measurement against one stored cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_kvcache.verdict.baseline import Baseline
from pytest_kvcache.verdict.environment import differences
from pytest_kvcache.verdict.estimate import Estimates
from pytest_kvcache.verdict.metrics import GATED, Metric

Status = Literal["pass", "improved", "regressed", "incomparable", "invalid", "no-baseline"]


@dataclass(frozen=True)
class Measurement:
    """What was measured in one cell.

    Args:
        estimates: The figures, as `estimate` gives them.
        comparability: Keys that must be equal to the baseline's.
        faults: Why the figures must not be used, empty where they may.
    """

    estimates: Estimates
    comparability: Mapping[str, str]
    faults: Sequence[str] = ()


@dataclass(frozen=True)
class Change:
    """One metric, then and now.

    Args:
        metric: Which.
        old: The stored value.
        new: The measured value.
        tolerance: By how much of `old` it may be worse.
    """

    metric: Metric
    old: float
    new: float
    tolerance: float

    @property
    def ratio(self) -> float:
        """New over old."""
        return self.new / self.old

    @property
    def worse_by(self) -> float:
        """Share of `old` by which `new` is worse; negative where it is better."""
        return self.metric.worse_by(old=self.old, new=self.new)

    @property
    def regressed(self) -> bool:
        """Worse by more than the tolerance."""
        return self.worse_by > self.tolerance

    @property
    def improved(self) -> bool:
        """Better by more than the tolerance."""
        return -self.worse_by > self.tolerance


@dataclass(frozen=True)
class Verdict:
    """The outcome for one cell.

    Args:
        status: Only `pass` and `improved` succeed.
        changes: Every compared metric.
        reasons: Why, where no comparison was possible.
    """

    status: Status
    changes: tuple[Change, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def succeeds(self) -> bool:
        """Whether a test with this verdict passes."""
        return self.status in {"pass", "improved"}


def decide(measured: Measurement, stored: Baseline | None, tolerances: Mapping[str, float]) -> Verdict:
    """Compare a measurement with the stored cell.

    Args:
        measured: Now.
        stored: Then; None where the cell has no baseline.
        tolerances: By metric key, how much of the stored value it may be worse by.

    Returns:
        `invalid` before anything else, then `no-baseline`, `incomparable`; otherwise `regressed` where any metric is
        worse by more than its tolerance, `improved` where none is and one is better by more, else `pass`.
    """
    missing = [m.label for m in GATED if not _usable(measured.estimates.get(m.key))]
    faults = [*measured.faults, *(f"{label} could not be measured" for label in missing)]
    if faults:
        return Verdict("invalid", reasons=tuple(faults))
    if stored is None:
        return Verdict("no-baseline")
    different = differences(stored.comparability, measured.comparability)
    absent = [f"the baseline has no {m.key}" for m in GATED if not _usable(stored.estimates.get(m.key))]
    if different or absent:
        return Verdict("incomparable", reasons=(*different, *absent))
    changes = tuple(
        Change(m, old=stored.estimates[m.key], new=measured.estimates[m.key], tolerance=tolerances[m.key])
        for m in GATED
    )
    if any(c.regressed for c in changes):
        return Verdict("regressed", changes)
    return Verdict("improved" if any(c.improved for c in changes) else "pass", changes)


def _usable(value: float | None) -> bool:
    return value is not None and 0 < value < float("inf")
