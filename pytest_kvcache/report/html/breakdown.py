"""The parts of the mean TTFT, and what of it lies outside of the server's own clocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_kvcache.proof.breakdown import PARTS
from pytest_kvcache.report import vega
from pytest_kvcache.report.html.loads import Load, last_of_cells
from pytest_kvcache.report.html.page import FILE, Figure, Section, Table, number, once

_POINTS = 100


def section(loads: Sequence[Load]) -> Section:
    """Return stacked bars of the parts, and the distribution of client less server, of each cell's last valid boot.

    Args:
        loads: All.
    """
    shown = last_of_cells(loads)
    figures = [each for each in (_parts(shown), _residual(shown)) if each is not None]
    return Section(
        key="breakdown",
        title="Breakdown of TTFT",
        intro=(
            "Parts of the mean TTFT, by rows and counters. The client's own work is in none of them: its stamps are "
            "the kernel's. The residual is the client's TTFT less the queue time and the time to the first token that "
            "the server tells with each answer."
        ),
        figures=tuple(figures),
    )


def _parts(shown: Sequence[Load]) -> Figure | None:
    values: list[dict[str, Any]] = []
    rows = []
    for load in shown:
        found = load.facts.estimates
        for at, (key, name) in enumerate(PARTS.items()):
            if found.get(key):
                values.append({"cell": load.cell, "part": name, "at": at, "ms": round(found[key] * 1e3, 3)})
                rows.append((load.cell, name, number(found[key] * 1e3), load.facts_file))
    if not values:
        return None
    names = [name for name in PARTS.values() if any(each["part"] == name for each in values)]
    body = {
        "data": {"values": values},
        "mark": {"type": "bar", "height": {"band": 0.75}},
        "encoding": {
            "y": {
                "field": "cell",
                "type": "nominal",
                "title": None,
                "sort": [load.cell for load in shown],
                "axis": {"labelLimit": 240},
            },
            "x": {"field": "ms", "type": "quantitative", "title": "mean TTFT (ms)"},
            "color": {
                "field": "part",
                "type": "nominal",
                "title": None,
                "scale": {"domain": names, "range": list(vega.PALETTE[: len(names)])},
                "legend": {"columns": 1, "labelLimit": 480},
            },
            "order": {"field": "at"},
            "tooltip": [{"field": "cell"}, {"field": "part"}, {"field": "ms", "title": "ms", "format": ".4~g"}],
        },
        "height": 26 * len(shown),
        "width": "container",
    }
    return Figure(
        key="breakdown-parts",
        title="Where the time to the first token goes",
        spec=vega.chart(body, colours=vega.PAGE),
        text="A bar a cell, stacked of the parts that the table has.",
        sources=once(load.facts_file for load in shown),
        table=Table("Parts of the mean TTFT", ("cell", "part", "ms", FILE), tuple(rows), folded=True),
    )


def _residual(shown: Sequence[Load]) -> Figure | None:
    values: list[dict[str, Any]] = []
    rows = []
    told = [(load, load.answered["residual_s"].dropna().to_numpy(dtype=float)) for load in shown]
    for load, residual_s in told:
        if not len(residual_s):
            continue
        shares = np.linspace(0, 1, min(_POINTS, len(residual_s)) if len(residual_s) > 1 else 2)
        for share, value in zip(shares, np.quantile(residual_s, shares), strict=True):
            at = {"label": load.label, "cell": str(load.context_tokens)}
            values.append(at | {"ms": round(value * 1e3, 3), "share": round(share, 4)})
        percentiles = (number(float(each) * 1e3) for each in np.quantile(residual_s, (0.5, 0.9, 0.99)))
        rows.append((load.cell, str(len(residual_s)), *percentiles, load.rows_file))
    if not values:
        return None
    contexts = sorted({load.context_tokens for load, found in told if len(found)})
    looks = vega.looks(list(dict.fromkeys(load.label for load in shown)))
    body = {
        "data": {"values": values},
        "params": [{"name": "cell", "value": str(contexts[-1])}, {"name": "hidden", "value": []}],
        "transform": [{"filter": "datum.cell == cell && indexof(hidden, datum.label) < 0"}],
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "ms", "type": "quantitative", "title": "client TTFT less the server's own times (ms)"},
            "y": vega.SHARE_WITHIN,
            "color": looks["color"],
            "strokeDash": looks["strokeDash"],
            "tooltip": [
                {"field": "label", "title": "tier"},
                {"field": "share", "format": ".1%"},
                {"field": "ms", "format": ".4~g"},
            ],
        },
        "width": "container",
        "height": 260,
    }
    columns = ("cell", "answers", "p50 ms", "p90 ms", "p99 ms", FILE)
    return Figure(
        key="residual",
        title="Client less server",
        spec=vega.chart(body, colours=vega.PAGE),
        text="Network, router, HTTP and tokenizing; the table has the percentiles.",
        sources=once(load.rows_file for load, found in told if len(found)),
        table=Table("Client TTFT less the server's own times", columns, tuple(rows), folded=True),
        choices=tuple(map(str, contexts)),
    )
