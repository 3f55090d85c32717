"""A cell over its baseline's boots, over past runs beside this one, and now; with the band that passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.report import series, vega
from pytest_kvcache.report.html.loads import Load
from pytest_kvcache.report.html.page import FILE, Figure, Section, Table, number, once
from pytest_kvcache.report.verdict_file import NAME, CellFacts, Verdicts
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric

#: Past sessions that are read: the newest.
MOST_SESSIONS = 30
_KINDS = ("baseline", "past run", "this report")
_KEYS = {metric.key: metric for metric in DEFAULT_METRICS}


def section(loads: Sequence[Load], told: Mapping[Path, Verdicts], past: Sequence[Load]) -> Section:
    """Return the boots of each cell, oldest first, a panel a judged metric.

    Args:
        loads: Of this report.
        told: By folder of the session, what it came to.
        past: Loads of other sessions in the same folder of runs.
    """
    now = {(load.label, load.context_tokens): load for load in loads}
    cells = {(cell.label, cell.context_tokens): cell for found in told.values() for cell in found.cells}
    files = {id(cell): f"{folder.name}/{NAME}" for folder, found in told.items() for cell in found.cells}
    values: list[dict[str, Any]] = []
    bands: list[dict[str, Any]] = []
    rows = []
    for (label, context), load in now.items():
        cell = cells.get((label, context))
        alike = [each for each in past if _alike(each, load)]
        mine = [each for each in loads if (each.label, each.context_tokens) == (label, context)]
        for metric in _KEYS.values():
            boots = _boots(metric, cell, files.get(id(cell), ""), alike, mine)
            if len(boots) < 2:
                continue
            for at, (kind, when, value, file) in enumerate(boots, start=1):
                values.append(
                    {"cell": load.cell, "metric": metric.label, "at": at, "kind": kind, "when": when, "value": value}
                )
                rows.append((load.cell, metric.label, str(at), kind, when, number(value), file))
            bands += _band(metric, cell, load.cell)
    if not values:
        return Section("history", "History")
    names = list(dict.fromkeys(each["cell"] for each in values))
    panels = [
        _panel(
            metric.label,
            [each for each in values if each["metric"] == metric.label],
            [each for each in bands if each["metric"] == metric.label],
        )
        for metric in _KEYS.values()
        if any(each["metric"] == metric.label for each in values)
    ]
    body = {"params": [{"name": "cell", "value": names[-1]}], "vconcat": panels}
    columns = ("cell", "metric", "no.", "what", "when", "value", FILE)
    return Section(
        key="history",
        title="History",
        intro=(
            "Every boot of a cell: those of its baseline, those of past runs beside this one whose hardware, settings "
            f"and workload are the same (the newest {MOST_SESSIONS} sessions), and those of this report. The band lies "
            "between the baseline's mean and what is worse by the margin."
        ),
        figures=(
            Figure(
                key="history-boots",
                title="Boots of a cell, oldest first",
                spec=vega.chart(body, colours=vega.PAGE),
                text="A point a boot; the table has all of them.",
                sources=once(row[-1] for row in rows),
                table=Table("Boots of every cell", columns, tuple(rows), folded=True),
                choices=tuple(names),
            ),
        ),
    )


def past_sessions(sessions: Sequence[Path]) -> pd.DataFrame | None:
    """Return what other sessions in the same folders of runs have measured, as `series.read`; None for nothing.

    Args:
        sessions: Those of the report.
    """
    known = {each.absolute() for each in sessions}
    beside = {each for session in known for each in session.parent.glob("*") if each.is_dir()} - known
    found = []
    for folder in sorted(beside, key=lambda each: each.name)[-MOST_SESSIONS:]:
        try:
            found.append(series.read([folder]))
        except ConfigError:
            continue  # nothing was measured, or unlike things were: it is no history
    return pd.concat(found, ignore_index=True) if found else None


def _boots(
    metric: Metric, cell: CellFacts | None, file: str, past: Sequence[Load], now: Sequence[Load]
) -> list[tuple[str, str, float, str]]:
    """Return kind, time, value and file of each boot, oldest first, each once."""
    found = []
    here = {load.session.name for load in (*past, *now)}
    for boot in cell.baseline if cell else ():
        if metric.key in boot.figures and boot.run_id not in here:
            found.append((_KINDS[0], boot.recorded, boot.figures[metric.key], file))
    for kind, loads in ((_KINDS[1], past), (_KINDS[2], now)):
        for load in sorted(loads, key=lambda each: each.facts.load.started_at or 0):
            value = load.facts.estimates.get(metric.key)
            if value is not None and load.valid:
                found.append((kind, f"{load.boot}, {_when(load)}", value, load.facts_file))
    return found


def _when(load: Load) -> str:
    started = load.facts.load.started_at
    return pd.Timestamp(started, unit="s").strftime("%Y-%m-%d %H:%M UTC") if started else "time not known"


def _alike(past: Load, load: Load) -> bool:
    return past.label == load.label and past.facts.comparability == load.facts.comparability


def _band(metric: Metric, cell: CellFacts | None, name: str) -> list[dict[str, Any]]:
    gate = next((gate for gate in cell.gates if gate.metric == metric.key), None) if cell else None
    if gate is None or gate.margin > 10:
        return []
    return [{"cell": name, "metric": metric.label, "old": gate.old, "limit": gate.limit}]


def _panel(title: str, values: list[dict[str, Any]], bands: list[dict[str, Any]]) -> dict[str, Any]:
    here = {"filter": "datum.cell == cell"}
    y = {"type": "quantitative", "title": title.partition(" (")[0], "scale": {"zero": False}, "axis": {"tickCount": 4}}
    colour = {"domain": list(_KINDS), "range": [vega.PALETTE[-1], vega.PALETTE[2], vega.PALETTE[1]]}
    tooltip = [{"field": name} for name in ("kind", "when")] + [{"field": "value", "title": title, "format": ".4~g"}]
    return {
        "layer": [
            {
                "data": {"values": bands},
                "transform": [here],
                "mark": {"type": "rect", "opacity": 0.18, "color": vega.PALETTE[0]},
                "encoding": {"y": y | {"field": "old"}, "y2": {"field": "limit"}},
            },
            {
                "data": {"values": values},
                "transform": [here],
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {
                    "x": {
                        "field": "at",
                        "type": "quantitative",
                        "title": "boot",
                        "axis": {"tickMinStep": 1, "format": "d"},
                        "scale": {"zero": False, "padding": 12},
                    },
                    "y": y | {"field": "value"},
                    "color": {"field": "kind", "type": "nominal", "title": None, "scale": colour},
                    "shape": {
                        "field": "kind",
                        "type": "nominal",
                        "title": None,
                        "scale": {"domain": list(_KINDS), "range": list(vega.SHAPES[:3])},
                    },
                    "tooltip": tooltip,
                },
            },
        ],
        "width": "container",
        "height": 130,
    }
