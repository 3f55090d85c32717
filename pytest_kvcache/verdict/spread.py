"""The level of a metric on a baseline's boots, how far boots spread around it, and what the machine's speed explains.

A shared machine is faster in one hour than in the next, and every boot with it: boots of one session spread less than
the weeks will. A canary reading (`canary`) is taken around each boot, and nothing under test can touch it, so it may
serve as a covariate: the analysis of covariance takes out what follows the reading, and asks for the rest (Cochran,
"Analysis of covariance: its nature and uses", Biometrics 1957). It costs a degree of freedom for the slope, and an
interval that grows as the machine's speed leaves what the baseline has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.interval import pooled


@dataclass(frozen=True)
class Level:
    """One metric of one cell, as its baseline has it; all on the turned log scale.

    Args:
        mean: Of the cell's boots.
        sd: Of a boot, pooled over the tier, and about the line where there is one.
        df: Its degrees of freedom.
        slope: Of the metric on the reading, both logs: 1 where the metric takes as much longer as the canary does.
        reading: Mean log reading of the cell's boots.
        squares: Sum of squared deviations of the readings that the slope rests on.
        usual_leverage: `leverage` of a machine whose speed is one more of those that the baseline has seen.
    """

    mean: float
    sd: float
    df: int
    slope: float = 0.0
    reading: float = 0.0
    squares: float = math.inf
    usual_leverage: float = 0.0

    def explained(self, reading: float) -> float:
        """Return by how much the metric is worse for a machine with this log reading, and for nothing else."""
        return self.slope * (reading - self.reading)

    def leverage(self, reading: float) -> float:
        """Return what an uncertain slope adds to the variance of a difference, in variances of a boot."""
        return (reading - self.reading) ** 2 / self.squares


def level(tier: Sequence[StoredCell], metric_index: int, *, adjust_for: str = "") -> Level:
    """Return the level of `JUDGED[metric_index]` in the first cell.

    One slope is fitted for all cells, within each (the boots of a cell less their mean): contexts differ in level, and
    what the machine does to them is taken to be alike.

    Args:
        tier: The cell, then those it is pooled with (`procedure.tier_of`).
        metric_index: Of the metric.
        adjust_for: A canary reading. Where it is empty, or a boot has no such reading, or all have the same, nothing is
            adjusted.

    Raises:
        ValueError: There is no degree of freedom.
    """
    logs = [[boot.logs(metric_index) for boot in cell.boots] for cell in tier]
    means = [mean(values) for values in logs]
    apart = [[v - m for v in values] for values, m in zip(logs, means, strict=True)]
    dfs = [len(values) - 1 for values in logs]
    readings = (
        [[math.log(boot.canary[adjust_for]) for boot in cell.boots] for cell in tier]
        if adjustable(tier, adjust_for)
        else []
    )
    if not readings:
        spread = pooled([_squares(values) for values in apart], dfs)
        return Level(means[0], float(spread.sd[0]), spread.df)
    middles = [mean(values) for values in readings]
    moved = [[v - m for v in values] for values, m in zip(readings, middles, strict=True)]
    squares = math.fsum(map(_squares, moved))
    slope = math.fsum(x * y for xs, ys in zip(moved, apart, strict=True) for x, y in zip(xs, ys, strict=True)) / squares
    rest = [[y - slope * x for x, y in zip(xs, ys, strict=True)] for xs, ys in zip(moved, apart, strict=True)]
    spread = pooled([_squares(values) for values in rest], dfs, fitted=1)
    # A new reading is as far from the mean of K as two of them differ: variance (1 + 1/K), in units of squares / df.
    usual = (1 + 1 / len(logs[0])) / sum(dfs)
    return Level(means[0], float(spread.sd[0]), spread.df, slope, middles[0], squares, usual)


def adjustable(tier: Sequence[StoredCell], reading: str) -> bool:
    """Return whether every boot has that reading, and they differ."""
    if not reading or any(reading not in boot.canary for cell in tier for boot in cell.boots):
        return False
    return any(boot.canary[reading] != cell.boots[0].canary[reading] for cell in tier for boot in cell.boots)


def degrees(tier: Sequence[StoredCell], *, adjust_for: str = "") -> int:
    """Return the degrees of freedom that `level` has for its spread."""
    return sum(len(cell.boots) - 1 for cell in tier) - int(adjustable(tier, adjust_for))


def mean(values: Sequence[float]) -> float:
    """Return the mean, to the last bit whatever the order."""
    return math.fsum(values) / len(values)


def _squares(deviations: Sequence[float]) -> float:
    return math.fsum(v**2 for v in deviations)
