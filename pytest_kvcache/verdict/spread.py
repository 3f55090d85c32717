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
from pytest_kvcache.verdict.metrics import Metric


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


def having(tier: Sequence[StoredCell], metric: Metric) -> tuple[StoredCell, ...]:
    """Return the cells whose boots all have a metric, and none where the first cell has it not.

    Contexts may lack an optional one: where a device cache holds a short history, vLLM alone has hits there, and none
    at longer ones.
    """
    found = tuple(cell for cell in tier if not cell.unmeasured([metric]))
    return found if found and found[0] is tier[0] else ()


def level(tier: Sequence[StoredCell], metric: Metric, *, adjust_for: str = "") -> Level:
    """Return the level of a metric in the first cell.

    One slope is fitted for all cells, within each (the boots of a cell less their mean): contexts differ in level, and
    what the machine does to them is taken to be alike.

    Args:
        tier: The cell, then those it is pooled with (`procedure.tier_of`), of which those count that have the metric.
        metric: One that every boot of the cell has (`StoredCell.unmeasured`).
        adjust_for: A canary reading. Where it is empty, or a boot has no such reading, or all have the same, nothing is
            adjusted.

    Raises:
        ValueError: There is no degree of freedom, or a boot has no such figure.
    """
    tier = having(tier, metric) or tier[:1]
    logs = [[metric.of(boot.figures) for boot in cell.boots] for cell in tier]
    middle, apart = mean(logs[0]), _about_means(logs)
    dfs = [len(values) - 1 for values in logs]
    reading = usable(tier, adjust_for)
    if not reading:
        spread = pooled([_squares(values) for values in apart], dfs)
        return Level(middle, float(spread.sd[0]), spread.df)
    readings = [[math.log(boot.canary[reading]) for boot in cell.boots] for cell in tier]
    moved = _about_means(readings)
    squares = math.fsum(map(_squares, moved))
    slope = math.fsum(x * y for xs, ys in zip(moved, apart, strict=True) for x, y in zip(xs, ys, strict=True)) / squares
    rest = [[y - slope * x for x, y in zip(xs, ys, strict=True)] for xs, ys in zip(moved, apart, strict=True)]
    spread = pooled([_squares(values) for values in rest], dfs, fitted=1)
    usual = usual_leverage(len(logs[0]), sum(dfs))
    return Level(middle, float(spread.sd[0]), spread.df, slope, mean(readings[0]), squares, usual)


def usual_leverage(boots: int, df: int) -> float:
    """Return the leverage that a further reading of the same machine has on average.

    It is as far from the mean of the baseline's as two of them differ: variance (1 + 1/K), in units of squares / df.

    Args:
        boots: K of the cell.
        df: Degrees of freedom of the readings, before the slope takes one.
    """
    return (1 + 1 / boots) / df


def usable(tier: Sequence[StoredCell], reading: str) -> str:
    """Return `reading` where every boot has it and they differ, so that a slope can be known; else nothing."""
    if not reading or any(reading not in boot.canary for cell in tier for boot in cell.boots):
        return ""
    differ = any(boot.canary[reading] != cell.boots[0].canary[reading] for cell in tier for boot in cell.boots)
    return reading if differ else ""


def degrees(tier: Sequence[StoredCell], metric: Metric, *, adjust_for: str = "") -> int:
    """Return the degrees of freedom that `level` has for the spread of a metric; none where the cell has it not."""
    tier = having(tier, metric)
    return sum(len(cell.boots) - 1 for cell in tier) - bool(usable(tier, adjust_for))


def mean(values: Sequence[float]) -> float:
    """Return the mean, to the last bit whatever the order."""
    return math.fsum(values) / len(values)


def _about_means(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[value - mean(group) for value in group] for group in groups]


def _squares(deviations: Sequence[float]) -> float:
    return math.fsum(v**2 for v in deviations)
