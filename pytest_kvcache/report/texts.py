"""The article's chart and table as text: Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from pytest_kvcache.report import chart, compared
from pytest_kvcache.report.compared import INTERVAL, Change, Point
from pytest_kvcache.report.published import PUBLISHED, SETTING
from pytest_kvcache.report.series import FIGURES, YARDSTICKS

#: Of the JSON; raised where a key changes its meaning or goes.
SCHEMA = 1
#: A name after an @ would be notified where GitHub shows the text; it would be so behind a backslash too.
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#~$&"} | {"@": "&#64;&#8203;", "\n": " ", "\r": " "})


def markdown(
    rows: pd.DataFrame, *, against: Sequence[str] = YARDSTICKS, reference: bool = False, left_out: Sequence[str] = ()
) -> str:
    """Return points, gains at each context and the most gained, as tables of Markdown.

    Args:
        rows: Of `series.read`.
        against: What tiers are held against.
        reference: Whether the article's published gains come too, marked as published.
        left_out: What left no figures, a line each.
    """
    parts = [f"**{_plain(chart.heading(rows))}**", _plain(chart.below(rows)), _table(point_table(rows))]
    for other in against:
        found = compared.changes(rows, against=other)
        if not found:
            continue
        head = chart.held(other)
        head = head[:1].upper() + head[1:]
        parts += [f"**{_plain(head)}: up to**", _table(compared.best_table(found))]
        parts += [f"**{_plain(head)}, at each context** ({INTERVAL})", _table(compared.table(found))]
    if reference:
        parts += [f"**Published, not measured here** ({_plain(SETTING)}): up to", _table(published_table(against))]
    parts += [f"- left out: {_plain(line)}" for line in left_out]
    parts += [f"- invalid, and in no figure: {_plain(line)}" for line in invalid(rows)]
    return "\n\n".join(parts) + "\n"


def csv(rows: pd.DataFrame) -> str:
    """Return the chart's data, a row a boot with the file that it is from."""
    return rows.to_csv(index=False)


def as_json(
    rows: pd.DataFrame, *, against: Sequence[str] = YARDSTICKS, reference: bool = False, left_out: Sequence[str] = ()
) -> str:
    """Return boots, points and changes with their intervals and files as JSON; the arguments are those of `markdown`.

    A figure that a boot does not have is null.
    """
    found = [each for other in against for each in compared.changes(rows, against=other)]
    data: dict[str, Any] = {
        "schema_version": SCHEMA,
        "model": str(rows["model"].iloc[0]),
        "hardware": str(rows["hardware"].iloc[0]),
        "workload": str(rows["workload"].iloc[0]),
        "interval": INTERVAL,
        "points": [_point(each) for each in compared.points(rows)],
        "changes": [_change(each) for each in found],
        "best": [_change(each) for each in compared.best_of(found)],
        "boots": [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            for row in rows.to_dict("records")
        ],
        "left_out": list(left_out),
    }
    if reference:
        of_these = [asdict(each) for each in PUBLISHED if each.against in against]
        data["published"] = {"setting": SETTING, "best": of_these}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def point_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a tier and context with each figure and its interval, as texts."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for each in compared.points(rows):
        row = cells.setdefault(
            (each.label, each.context_tokens), {"tier": each.label, "context": str(each.context_tokens)}
        )
        row[each.figure.label] = with_interval(each)
        row["boots"] = str(each.boots)
    columns = ["tier", "context", *(figure.label for figure in FIGURES), "boots"]
    return pd.DataFrame(list(cells.values()), columns=columns, dtype=object).fillna("-")


def with_interval(point: Point) -> str:
    """Return a point in four digits, with its interval where it has one."""
    if point.low is None or point.high is None:
        return _digits(point.value)
    return f"{_digits(point.value)} [{_digits(point.low)}, {_digits(point.high)}]"


def _digits(value: float) -> str:
    return f"{value:.0f}" if 1000 <= value < 1e15 else f"{value:.4g}"


def published_table(against: Sequence[str] = YARDSTICKS) -> pd.DataFrame:
    """Return what the article published, a row a tier and what it is held against."""
    short = {figure.key: figure.short for figure in FIGURES}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for each in PUBLISHED:
        if each.against in against:
            row = cells.setdefault(
                (each.tier, each.against), {"tier": each.tier, "compared to": chart.held(each.against)[12:]}
            )
            row[short[each.figure_key]] = f"{each.change:+.0%}"
    return pd.DataFrame(list(cells.values()), columns=["tier", "compared to", *short.values()], dtype=object).fillna(
        "-"
    )


def invalid(rows: pd.DataFrame) -> list[str]:
    """Return a line for each boot that no figure may rest on, with the reason."""
    return [f"{r.label} at {r.context_tokens}: {r.faults}" for r in rows[rows["faults"] != ""].itertuples()]


def _point(each: Point) -> dict[str, Any]:
    return asdict(each) | {"figure": each.figure.key, "sources": list(each.sources)}


def _change(each: Change) -> dict[str, Any]:
    return asdict(each) | {"figure": each.figure.key, "boots": list(each.boots), "sources": list(each.sources)}


def _table(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns)]
    lines = [[_plain(str(each)) for each in lines[0]], lines[1]]
    lines += [[_plain(str(each)) for each in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return "".join(c if c.isprintable() else " " for c in text).translate(_SPECIAL)
