"""Points of the article's chart with their intervals, and each tier held against another one (pure).

A point is the geometric mean over valid boots, as in the table of a session. Its interval is the 95 % t interval of the
boots' logarithms: boots are the replicates, requests never. A change between two tiers is the ratio of two such means,
with the 95 % interval of Welch's t for the difference of the logarithms. One boot has no spread, so a point of one boot
has no interval, and neither has a change in which one side has one boot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from pytest_kvcache.report.series import FIGURES, YARDSTICKS, Figure

#: How the intervals are named wherever they are shown.
INTERVAL = "95 % t interval over boots, of logarithms"
_LEVEL = 0.95


@dataclass(frozen=True)
class Point:
    """One point of the chart.

    Args:
        label: The tier.
        context_tokens: Length of the user context.
        figure: What was measured.
        value: Geometric mean over boots.
        low: Lower end of the interval; None where there is one boot.
        high: Upper end of it.
        boots: How many boots it rests on.
        sources: Their files.
    """

    label: str
    context_tokens: int
    figure: Figure
    value: float
    low: float | None
    high: float | None
    boots: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """A tier held against another one at one context length.

    Args:
        label: The tier.
        against: The other one.
        context_tokens: Length of the user context.
        figure: What is compared.
        change: Ratio of the means less 1.
        low: Lower end of the interval; None where a side has one boot.
        high: Upper end of it.
        boots: How many boots the two have.
        sources: Files of both.
    """

    label: str
    against: str
    context_tokens: int
    figure: Figure
    change: float
    low: float | None
    high: float | None
    boots: tuple[int, int]
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The change in percent, with its interval."""
        if self.low is None or self.high is None:
            return f"{self.change:+z.0%}"
        return f"{self.change:+z.0%} [{self.low:+z.0%}, {self.high:+z.0%}]"


def points(rows: pd.DataFrame) -> list[Point]:
    """Return a point for each tier, context and figure that a valid boot has, tiers in the order of `rows`.

    Args:
        rows: Of `series.read`.
    """
    found = []
    for label, context, boots in _groups(rows):
        for figure in FIGURES:
            logs = _logs(boots, figure)
            if logs is not None:
                middle, low, high = _interval(logs)
                sources = _sources(boots)
                found.append(Point(label, context, figure, middle, low, high, len(logs), sources))
    return found


def changes(rows: pd.DataFrame, *, against: str) -> list[Change]:
    """Return each tier held against the tier `against`, for each context that both have and each figure.

    Args:
        rows: Of `series.read`. Other tools' results, of some other machine, are held against nothing.
        against: Label of the other tier.
    """
    rows = rows[~rows["imported"].astype(bool)]
    groups = {(label, context): boots for label, context, boots in _groups(rows)}
    found = []
    for (label, context), boots in groups.items():
        other = groups.get((against, context))
        if label == against or other is None:
            continue
        for figure in FIGURES:
            new, old = _logs(boots, figure), _logs(other, figure)
            if new is not None and old is not None:
                ratio, low, high = _ratio(new, old)
                counts = (len(new), len(old))
                files = (*_sources(boots), *_sources(other))
                found.append(Change(label, against, context, figure, ratio, low, high, counts, files))
    return found


def best_of(found: Iterable[Change]) -> list[Change]:
    """Return the most that each tier gained in each figure over all contexts: the "up to" of the article."""
    best: dict[tuple[str, str, str], Change] = {}
    for each in found:
        key = (each.label, each.against, each.figure.key)
        known = best.get(key)
        higher = each.figure.higher_is_better
        if known is None or (each.change > known.change if higher else each.change < known.change):
            best[key] = each
    return list(best.values())


def table(found: Sequence[Change]) -> pd.DataFrame:
    """Return a row a tier and context with the change of each figure and its interval, as texts."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for each in found:
        key = (each.label, each.context_tokens)
        row = cells.setdefault(key, {"tier": each.label, "context": str(each.context_tokens)})
        row[each.figure.short] = str(each)
        row["boots"] = f"{each.boots[0]} / {each.boots[1]}"
    columns = ["tier", "context", *(figure.short for figure in FIGURES), "boots"]
    return pd.DataFrame(list(cells.values()), columns=columns, dtype=object).fillna("-")


def best_table(found: Sequence[Change]) -> pd.DataFrame:
    """Return a row a tier with the most that it gained in each figure, and the context at which it was, as texts."""
    cells: dict[str, dict[str, str]] = {}
    for each in best_of(found):
        row = cells.setdefault(each.label, {"tier": each.label})
        row[each.figure.short] = f"{each.change:+z.0%} (at {each.context_tokens})"
    return pd.DataFrame(
        list(cells.values()), columns=["tier", *(figure.short for figure in FIGURES)], dtype=object
    ).fillna("-")


def best_tables(rows: pd.DataFrame, *, against: Iterable[str] = YARDSTICKS) -> list[str]:
    """Return `best_table` as outputs print it, a text for each of `against` that there is something to hold against.

    Args:
        rows: Of `series.read`.
        against: Labels of the other tiers.
    """
    found = {label: changes(rows, against=label) for label in against}
    return [
        f"at best, against {label}:\n{best_table(each).to_string(index=False)}" for label, each in found.items() if each
    ]


def _groups(rows: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    valid = rows[rows["faults"] == ""]
    order = {label: at for at, label in enumerate(rows["label"].unique())}
    found = [
        (str(label), int(str(context)), boots)
        for label, mine in valid.groupby("label", sort=False)
        for context, boots in mine.groupby("context_tokens")
    ]
    return sorted(found, key=lambda each: (order[each[0]], each[1]))


def _logs(boots: pd.DataFrame, figure: Figure) -> np.ndarray | None:
    """Return the logarithms of the boots that have the figure, None where none has."""
    values = boots[figure.key].to_numpy(dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    return np.log(values) if len(values) else None


def _interval(logs: np.ndarray) -> tuple[float, float | None, float | None]:
    middle = float(logs.mean())
    if len(logs) < 2:
        return math.exp(middle), None, None
    half = float(special.stdtrit(len(logs) - 1, (1 + _LEVEL) / 2) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def _ratio(new: np.ndarray, old: np.ndarray) -> tuple[float, float | None, float | None]:
    effect = float(new.mean() - old.mean())
    if min(len(new), len(old)) < 2:
        return math.expm1(effect), None, None
    parts = [float(side.var(ddof=1)) / len(side) for side in (new, old)]
    whole = sum(parts)
    if whole == 0:
        return math.expm1(effect), math.expm1(effect), math.expm1(effect)
    freedom = whole**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (new, old), strict=True))
    half = float(special.stdtrit(freedom, (1 + _LEVEL) / 2)) * math.sqrt(whole)
    return math.expm1(effect), math.expm1(effect - half), math.expm1(effect + half)


def _sources(boots: pd.DataFrame) -> tuple[str, ...]:
    return tuple(map(str, boots["source"])) if "source" in boots else ()
