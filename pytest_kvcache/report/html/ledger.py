"""Where prompt tokens came from, by counters, beside what an LRU hierarchy of the same sizes gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.report import vega
from pytest_kvcache.report.html.loads import Load, last_of_cells
from pytest_kvcache.report.html.page import FILE, Figure, Section, Table, number, once

_PARTS = (
    ("computed", "computed"),
    ("device", "device"),
    ("L1", "l1"),
    ("L2", "l2"),
    ("L1+L2", "unsplit"),
    ("elsewhere", "other"),
    ("lost", "lost"),
)


def section(loads: Sequence[Load]) -> Section:
    """Return the ledger of the last valid boot of each cell, of all servers together and of each.

    Args:
        loads: All.
    """
    shown = [load for load in last_of_cells(loads) if load.measured]
    if not shown:
        return Section("ledger", "Where prompt tokens came from")
    values: list[dict[str, Any]] = []
    rows = []
    for load in shown:
        sides = (("measured", load.measured), ("expected", load.expected))
        for what, servers in sides:
            if servers:
                values += _bars(load, what, sum(servers.values(), Tokens()))
                rows += [_row(load, name, what, tokens) for name, tokens in servers.items()]
    names = [name for name, _ in _PARTS if any(each["source"] == name for each in values)]
    body = {
        "data": {"values": values},
        "mark": {"type": "bar", "height": {"band": 0.8}},
        "encoding": {
            "y": {"field": "what", "type": "nominal", "title": None, "sort": ["measured", "expected"]},
            "x": {
                "field": "share",
                "type": "quantitative",
                "title": "share of prompt tokens",
                "axis": {"format": ".0%"},
                "scale": {"domain": [0, 1]},
            },
            "color": {
                "field": "source",
                "type": "nominal",
                "title": "KV from",
                "scale": {"domain": names, "range": [vega.SOURCES[name] for name in names]},
            },
            "order": {"field": "at"},
            "row": {
                "field": "cell",
                "type": "nominal",
                "title": None,
                "sort": [load.cell for load in shown],
                "header": {"labelAngle": 0, "labelAlign": "left", "labelOrient": "top", "labelAnchor": "start"},
            },
            "opacity": {"condition": {"test": "datum.what == 'expected'", "value": 0.55}, "value": 1},
            "tooltip": [
                {"field": "cell"},
                {"field": "what"},
                {"field": "source", "title": "KV from"},
                {"field": "tokens", "format": ",.0f"},
                {"field": "share", "format": ".1%"},
            ],
        },
        "spacing": 6,
        "height": {"step": 18},
        "width": "container",
    }
    columns = ("cell", "server", "what", "prompt tokens", *(name for name, _ in _PARTS), FILE)
    figure = Figure(
        key="ledger-bars",
        title="Measured by counters, and expected of an LRU hierarchy",
        spec=vega.chart(body, colours=vega.PAGE),
        text="A pair of bars a cell: measured and, paler, expected. The table has the tokens of each server.",
        sources=once(load.facts_file for load in shown),
        table=Table("Prompt tokens by server and source", columns, tuple(rows), folded=True),
    )
    found = once(f"{load.cell}: {line}" for load in shown for line in load.facts.proof.findings)
    unchecked = once(f"not proved: {load.cell}: {line}" for load in shown for line in load.facts.proof.unchecked)
    storage = _storage(shown)
    return Section(
        key="ledger",
        title="Where prompt tokens came from",
        intro="Computed by the engine, or with their KV from the device cache, CPU memory (L1) or shared storage (L2).",
        figures=(figure,),
        tables=(storage,) if storage.rows else (),
        lines=(*found, *unchecked),
    )


def _bars(load: Load, what: str, tokens: Tokens) -> list[dict[str, Any]]:
    whole = tokens.total
    return [
        {
            "cell": load.cell,
            "what": what,
            "source": name,
            "at": at,
            "tokens": getattr(tokens, key),
            "share": round(getattr(tokens, key) / whole, 5),
        }
        for at, (name, key) in enumerate(_PARTS)
        if whole and getattr(tokens, key)
    ]


def _row(load: Load, server: str, what: str, tokens: Tokens) -> tuple[str, ...]:
    parts = (f"{getattr(tokens, key):.0f}" for _, key in _PARTS)
    return (load.cell, server, what, f"{tokens.total:.0f}", *parts, load.facts_file)


def _storage(shown: Sequence[Load]) -> Table:
    """Return what LMCache says of each tier's storage beside what the storage says of itself."""
    rows = []
    for load in shown:
        told = load.facts.proof.storage
        claimed, found = told.get("claimed_bytes"), told.get("figures")
        if not isinstance(claimed, dict) or not isinstance(found, dict):
            continue
        speed = load.facts.estimates.get("l2_load_bytes_per_s")
        rows += [
            (load.cell, str(told.get("storage_account", "")), name, number(_number(value), 9), load.facts_file)
            for name, value in (
                *((f"LMCache: {key} (bytes)", claimed[key]) for key in sorted(claimed)),
                *((f"storage: {key}", found[key]) for key in sorted(found)),
                *((("mean throughput of loads (bytes/s)", speed),) if speed else ()),
            )
        ]
    columns = ("cell", "account of", "what", "value", FILE)
    return Table("What the storage says of it", columns, tuple(rows), folded=True)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
