"""Which change of commit, versions or machine moved a cell (pure).

Boots in a row with the same commit, versions and keys are one state. Two neighbouring states are compared by the means
of the logarithms of a figure, with the spread of boots pooled over all states of the cell and Student's t; the error is
divided by the number of comparisons. This finds where to look. What passes and what fails is decided by verdicts alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

#: Chance that one of a cell's comparisons is called a move where nothing moved.
ALPHA = 0.05


@dataclass(frozen=True)
class State:
    """Boots in a row with the same commit, versions and keys.

    Args:
        first_run: Session of its first boot.
        started_at: Of its first boot (s since 1970).
        boots: How many.
        commit: Of the project, "" where it is not known.
        changed: What differs from the state before, a text each; empty for the first.
        mean: Geometric mean of the figure, NaN where no boot has it.
        change: Ratio to the state before, less one; NaN for the first.
        low: Lower end of the interval of `change`; NaN where spread is not known.
        high: Its upper end.
    """

    first_run: str
    started_at: float
    boots: int
    commit: str
    changed: tuple[str, ...]
    mean: float
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def moved(self) -> bool:
        """Whether the interval excludes no change."""
        return self.low > 0 or self.high < 0


def states(rows: pd.DataFrame, figure: str) -> list[State]:
    """Return the states of a cell, in the order of time.

    Args:
        rows: Of `index.frame`, those of one cell; boots that are invalid are left out here.
        figure: Key of an estimate, such as `ttft_geomean_s`.
    """
    valid = rows[(rows["faults"] == "") & (rows["error"] == "") & ~rows["imported"].astype(bool)]
    groups: list[pd.DataFrame] = []
    if len(valid):
        state = valid[["commit", "versions", "keys"]].agg("\0".join, axis=1)
        groups = [group for _, group in valid.groupby((state != state.shift()).cumsum(), sort=False)]
    logs = [_logs(group, figure) for group in groups]
    degrees = sum(max(0, len(each) - 1) for each in logs)
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in logs if len(each))
    sd = math.sqrt(squares / degrees) if degrees else math.nan
    t = float(special.stdtrit(degrees, 1 - ALPHA / 2 / max(1, len(groups) - 1))) if degrees else math.nan
    found: list[State] = []
    for at, (group, each) in enumerate(zip(groups, logs, strict=True)):
        before = logs[at - 1] if at else each[:0]
        difference, half = math.nan, math.nan
        if len(before) and len(each):
            difference = float(each.mean() - before.mean())
            half = t * sd * math.sqrt(1 / len(before) + 1 / len(each))
        first = group.iloc[0]
        found.append(
            State(
                first_run=first["run"],
                started_at=float(first["started_at"]),
                boots=len(group),
                commit=first["commit"],
                changed=_changed(groups[at - 1].iloc[-1].to_dict(), first.to_dict()) if at else (),
                mean=float(np.exp(each.mean())) if len(each) else math.nan,
                change=math.expm1(difference),
                low=math.expm1(difference - half),
                high=math.expm1(difference + half),
            )
        )
    return found


def _logs(group: pd.DataFrame, figure: str) -> np.ndarray:
    values = [figures.get(figure, math.nan) for figures in group["figures"]]
    return np.array([math.log(value) for value in values if value > 0])


def _changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> tuple[str, ...]:
    lines = []
    if before["commit"] != after["commit"]:
        lines.append(f"commit {_short(str(before['commit']))} → {_short(str(after['commit']))}")
    for column in ("versions", "keys"):
        old, new = (_object(row[column]) for row in (before, after))
        lines += [
            f"{key} {old.get(key, 'none')} → {new.get(key, 'none')}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    return tuple(lines)


def _object(text: object) -> dict[str, str]:
    try:
        found = json.loads(str(text))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _short(commit: str) -> str:
    revision, plus, _ = commit.partition("+")
    return f"{revision[:10]}{plus}" if revision else "unknown"


def matching(rows: pd.DataFrame, cell: str) -> pd.DataFrame:
    """Return the rows of the cells that a text names: TIER, TIER/TOKENS or PROFILE/TIER/TOKENS; "" for all."""
    parts: Sequence[str] = [part for part in cell.split("/") if part]
    if not parts:
        return rows
    if len(parts) == 1:
        return rows[rows["tier"] == parts[0]]
    found = rows[(rows["tier"] == parts[-2]) & (rows["context_tokens"].astype(str) == parts[-1])]
    return found[found["profile"] == parts[0]] if len(parts) == 3 else found[: len(found) if len(parts) < 3 else 0]
