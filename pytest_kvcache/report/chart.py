"""The reference article's chart: processing speed against context length, a line a tier; TTFT and decode beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.report import vega
from pytest_kvcache.report.compared import INTERVAL, Change, best_of, changes, points
from pytest_kvcache.report.published import PUBLISHED, SETTING
from pytest_kvcache.report.series import FIGURES, YARDSTICKS, Figure

_SIZE = {"width": 320, "height": 260}
_AGAINST = {"gpu": "GPU only", "cpu": "GPU + CPU"}


def draw(rows: pd.DataFrame, path: Path, *, reference: bool = False, against: Sequence[str] = YARDSTICKS) -> Path:
    """Draw a panel a figure and return the file.

    Lines go through the means of valid boots, with their intervals; small points are boots. What cannot be drawn is
    written above: boots that are invalid, and the machine that all of it was measured on.

    Args:
        rows: Of `series.read`.
        path: Of the file; its suffix says what it is (.svg, .png, .pdf).
        reference: Whether the article's published gains stand beside those of the runs.
        against: What tiers are held against in the panels of gains.

    Raises:
        OSError: It could not be written.
        ValueError: The suffix is none that can be drawn.
    """
    panels = [{**panel(rows, figure), **_SIZE} for figure in FIGURES]
    body: dict[str, Any] = {"hconcat": panels}
    if reference:
        gains = {"hconcat": [{**gain_panel(rows, figure, against), "width": _SIZE["width"]} for figure in FIGURES]}
        body = {"vconcat": [body, gains], "resolve": {"scale": {"color": "independent"}}}
    title = {"text": heading(rows), "subtitle": textwrap.wrap(below(rows, reference=reference), 180)}
    return vega.draw(vega.chart({"title": title, **body}, colours=vega.PAPER), path)


def heading(rows: pd.DataFrame) -> str:
    """Return model and workload in words."""
    return f"{rows['model'].iloc[0]}: {rows['workload'].iloc[0]}"


def labels(rows: pd.DataFrame) -> list[str]:
    """Return the tiers in the order in which charts have them."""
    return [str(label) for label in rows["label"].unique()]


def panel(rows: pd.DataFrame, figure: Figure) -> vega.Spec:
    """Return one panel of the chart, without a size.

    Args:
        rows: Of `series.read`.
        figure: Which.
    """
    means: list[dict[str, Any]] = [
        {
            "label": each.label,
            "context": each.context_tokens,
            "value": each.value,
            "low": each.low,
            "high": each.high,
            "boots": each.boots,
        }
        for each in points(rows)
        if each.figure == figure
    ]
    valid = rows[(rows["faults"] == "") & rows[figure.key].notna()]
    boots: list[dict[str, Any]] = [
        {"label": str(label), "context": int(context), "value": float(value)}
        for label, context, value in zip(valid["label"], valid["context_tokens"], valid[figure.key], strict=True)
    ]
    looks = vega.looks(labels(rows))
    contexts = sorted(int(each) for each in rows["context_tokens"].unique())
    logarithmic = not figure.higher_is_better and all(each["value"] > 0 for each in (*means, *boots)) and bool(means)
    scale = {"type": "log", "nice": False, "padding": 12} if logarithmic else {"zero": True}
    x = {
        "field": "context",
        "type": "quantitative",
        "title": "user context (tokens)",
        "axis": {"values": contexts, "format": "d", "labelOverlap": True},
        "scale": {"zero": False, "padding": 14},
    }
    axis = {"format": ".3~g" if logarithmic else "~s", "tickCount": 6}
    y = {"field": "value", "type": "quantitative", "title": figure.label, "scale": scale, "axis": axis}
    told = [
        {"field": "label", "title": "tier"},
        {"field": "context", "title": "context (tokens)"},
        {"field": "value", "title": figure.short, "format": ".4~g"},
    ]
    ends = [{"field": "low", "title": "from", "format": ".4~g"}, {"field": "high", "title": "to", "format": ".4~g"}]
    more = [*told, *ends, {"field": "boots", "title": "boots"}]
    colour, shape = looks["color"], looks["shape"]
    known = [each for each in means if each["low"] is not None]
    intervals = {
        "data": {"values": known},
        "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
        "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}, "tooltip": more},
    }
    return {
        "data": {"values": means},
        "encoding": {"x": x, "color": colour},
        "layer": [
            *([intervals] if known else []),
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": y},
            },
            {
                "data": {"values": boots},
                "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.45, "aria": False},
                "encoding": {"y": y, "shape": shape, "tooltip": told},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {"y": y, "shape": shape, "tooltip": more},
            },
        ],
    }


def gain_panel(rows: pd.DataFrame, figure: Figure, against: Sequence[str] = YARDSTICKS) -> vega.Spec:
    """Return a panel with the most that each tier gained, and what the article published, without a width.

    Args:
        rows: Of `series.read`.
        figure: Which.
        against: What tiers are held against.
    """
    found = [gain for other in against for gain in best_of(changes(rows, against=other)) if gain.figure == figure]
    values = [_measured(each) for each in found] + published(figure, against)
    return {
        "data": {"values": values},
        "mark": {"type": "bar", "height": {"band": 0.7}},
        "height": {"step": 18},
        "encoding": {
            "y": {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 190}},
            "x": {
                "field": "change",
                "type": "quantitative",
                "title": f"{figure.short}: most gained over all contexts",
                "axis": {"format": "+.0%", "tickCount": 5},
            },
            "color": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["measured here", "published"], "range": [vega.PALETTE[0], vega.PALETTE[-1]]},
            },
            "row": {"field": "against", "type": "nominal", "title": None, "sort": None, "header": {"orient": "top"}},
            "tooltip": [
                {"field": "label", "title": "tier"},
                {"field": "against", "title": "held"},
                {"field": "change", "title": "change", "format": "+.0%"},
                {"field": "at", "title": "at context"},
                {"field": "kind", "title": "what"},
            ],
        },
        "resolve": {"scale": {"y": "independent"}},
    }


def published(figure: Figure, against: Sequence[str] = YARDSTICKS) -> list[dict[str, Any]]:
    """Return what the article published of a figure, as rows of `gain_panel`."""
    return [
        {"label": p.tier, "against": held(p.against), "change": p.change, "kind": "published", "at": "not said"}
        for p in PUBLISHED
        if p.figure_key == figure.key and p.against in against
    ]


def held(against: str) -> str:
    """Return what a tier is held against, in the article's words."""
    return f"compared to {_AGAINST.get(against, against)}"


def below(rows: pd.DataFrame, *, reference: bool = False) -> str:
    """Return what the chart's reader has to know: machine, boots, intervals, what is not shown."""
    valid = rows[rows["faults"] == ""]
    counts = valid.groupby(["label", "context_tokens"]).size()
    fewest, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    boots = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    parts = [f"{rows['hardware'].iloc[0]}; boots a point: {boots}"]
    parts += [f"bars: {INTERVAL}"] if most > 1 else []
    invalid = rows[rows["faults"] != ""]
    parts += [f"not shown, invalid: {row.label} at {row.context_tokens}" for row in invalid.itertuples()]
    parts += [f"published: {SETTING}"] if reference else []
    return "; ".join(parts)


def _measured(each: Change) -> Mapping[str, Any]:
    return {
        "label": each.label,
        "against": held(each.against),
        "change": each.change,
        "kind": "measured here",
        "at": str(each.context_tokens),
    }
