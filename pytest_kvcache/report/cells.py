"""What one cell of the results is in a table: figures, change and verdict, for the terminal and for GitHub's page."""

from __future__ import annotations

import math

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.report.rows import change_of, gate_of, making_of, status
from pytest_kvcache.verdict.estimate import Estimates
from pytest_kvcache.verdict.procedure import share


def seconds(figures: Estimates, key: str) -> str:
    """Return a time (s), to the millisecond below ten seconds; "-" where there is none."""
    value = figures.get(key, math.nan)
    return "-" if math.isnan(value) else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def whole(figures: Estimates, key: str) -> str:
    """Return a figure without decimals; "-" where there is none."""
    value = figures.get(key, math.nan)
    return "-" if math.isnan(value) else f"{value:.0f}"


def change(result: CellResult) -> str:
    """Return the change of the gate that decides, worse-positive, with its interval; "-" where nothing is compared."""
    if (moved := change_of(result, None)) is not None:
        name = moved.metric.short or moved.metric.key
        return f"{name} {share(moved.effect):+z.0%}" if moved.effect is not None else f"{name} ?"
    gate = gate_of(result, None)
    if gate is None:
        return "-"
    text = f"{gate.metric.short or gate.metric.key} {share(gate.effect):+z.0%}"
    return f"{text} [{_percent(share(gate.lower))}, {_percent(share(gate.upper))}]"


def verdict(result: CellResult) -> str:
    """Return the verdict of a cell in a word or two, with the number of boots of a baseline that is being made."""
    word = status(result, None)
    if (making := making_of(result, None)) is not None:
        return f"{word} {making.boots}/{making.needed}"
    if word == "recorded" and result.write is not None:
        return f"{word} {len(result.write.new.boots)}"
    return word


def _percent(value: float) -> str:
    """Return a bound of an interval; one that nobody would read to the end is shortened."""
    return f"{value:+z.0%}" if value < 10 else f"x{value + 1:.0f}" if value < 1e3 else "..."
