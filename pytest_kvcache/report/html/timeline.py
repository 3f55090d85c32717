"""All requests of a load over time, coloured by where their KV came from; storage and GPUs beneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pytest_kvcache.report import vega
from pytest_kvcache.report.html.kv_sources import by_request, sizes
from pytest_kvcache.report.html.loads import Load, last_of_cells
from pytest_kvcache.report.html.page import FILE, Figure, Section, Table, number, once

#: Requests that all timelines of a page draw together: a page of them stays below 3 MB.
MOST_REQUESTS = 9000
_BINS, _BLOCK = 300, 20_000
_ORDER = ("computed", "device", "L1", "L2", "cached", "failed")


def section(loads: Sequence[Load]) -> Section:
    """Return the timeline of the last valid boot of each cell.

    Args:
        loads: All.
    """
    shown = [load for load in last_of_cells(loads) if not load.rows.empty and load.rows["actual_start_s"].notna().any()]
    if not shown:
        return Section("timeline", "Timeline")
    every = max(1, -(-sum(len(load.rows) for load in shown) // MOST_REQUESTS))
    requests, series, rows = [], [], []
    for load in shown:
        sources = by_request(load)
        drawn = _requests(load, sources)
        requests += drawn[::every]
        series += _moved(load, sources) + _gpus(load)
        rows += _table(load, sources)
    longest = max(float(load.rows[["actual_start_s", "last_token_s"]].max().max()) for load in shown)
    lines = [f"one of {every} requests is drawn, so that the page stays small"] if every > 1 else []
    guessed = [load.cell for load in shown if "cached" in by_request(load)]
    if guessed:
        lines.append(f"which level the cached tokens came from is not known of {', '.join(guessed)}")
    return Section(
        key="timeline",
        title="Timeline of requests",
        intro=(
            "A bar a request, from its send to its last token, a row a user; its colour is where most of its prompt's "
            "KV came from. An answer tells how many tokens were cached; the level is what an LRU hierarchy of the same "
            "sizes gives for it. Beneath: KV loaded from CPU memory and storage, spread evenly from each send to its "
            "first token, and how busy the GPUs were."
        ),
        figures=(_figure(shown, requests, series, rows, longest),),
        lines=tuple(lines),
    )


def _figure(
    shown: Sequence[Load],
    requests: list[dict[str, Any]],
    series: list[dict[str, Any]],
    rows: list[tuple[str, ...]],
    longest_s: float,
) -> Figure:
    cells = [load.cell for load in shown]
    names = [name for name in _ORDER if any(each["k"] == name for each in requests)]
    colour = {"domain": names, "range": [vega.SOURCES[name] for name in names]}
    time = {
        "type": "quantitative",
        "title": None,
        "scale": {"domainMin": {"expr": "from_s"}, "domainMax": {"expr": "to_s"}},
    }
    here = {"filter": "datum.c == cell"}
    inside = {"filter": "datum.e >= from_s && datum.s <= to_s"}
    tooltip = [
        {"field": field, "title": title, "format": form} if form else {"field": field, "title": title}
        for field, title, form in (
            ("u", "user", ""), ("r", "round", ""), ("k", "most KV from", ""), ("s", "sent (s)", ".2f"),
            ("t", "TTFT (s)", ".4~g"), ("p", "prompt tokens", ""), ("x", "of them computed", ""), ("v", "server", ""),
        )
    ]  # fmt: skip
    parts: list[dict[str, Any]] = [
        {
            "data": {"values": requests},
            "transform": [here, inside],
            "mark": {"type": "bar", "clip": True, "height": {"band": 0.8}, "minBandSize": 2, "aria": False},
            "encoding": {
                "x": time | {"field": "s"},
                "x2": {"field": "e"},
                "y": {
                    "field": "u",
                    "type": "ordinal",
                    "title": "user",
                    "axis": {"labelOverlap": True, "ticks": False, "domain": False},
                },
                "color": {"field": "k", "type": "nominal", "title": "most KV from", "scale": colour},
                "tooltip": tooltip,
            },
            "width": "container",
            "height": 260,
        }
    ]
    for what, title, domain in (
        ("storage", "KV loaded (MB/s)", None),
        ("tokens", "tokens loaded a second", None),
        ("gpu", "GPU busy (%)", [0, 100]),
    ):
        mine = [each for each in series if each["what"] == what]
        if mine:
            parts.append(_beneath(mine, title, time, here, domain))
    parts[-1]["encoding"]["x"] = parts[-1]["encoding"]["x"] | {"title": "seconds after the start of the load"}
    body = {
        "params": [
            {"name": "cell", "value": cells[-1]},
            {"name": "from_s", "value": 0},
            {"name": "to_s", "value": round(longest_s, 2)},
        ],
        "vconcat": parts,
        "resolve": {"scale": {"color": "independent", "x": "independent"}},
    }
    columns = ("cell", "round", "requests", "failed", "prompt tokens", *(n for n in _ORDER if n != "failed"), FILE)
    return Figure(
        key="timeline-requests",
        title="Requests over time",
        spec=vega.chart(body, colours=vega.PAGE),
        text="The table has the prompt tokens of each round by where their KV came from.",
        sources=once(
            source for load in shown for source in (load.rows_file, *([] if load.gpus.empty else [load.gpus_file]))
        ),
        table=Table("Prompt tokens by round and source", columns, tuple(rows), folded=True),
        choices=tuple(cells),
        span_s=round(longest_s, 2),
    )


def _beneath(
    values: list[dict[str, Any]], title: str, time: dict[str, Any], here: dict[str, Any], domain: list[int] | None
) -> dict[str, Any]:
    scale = {"scale": {"domain": domain}} if domain else {}
    names = list(dict.fromkeys(each["k"] for each in values))
    colours = [vega.SOURCES.get(name, vega.PALETTE[at % len(vega.PALETTE)]) for at, name in enumerate(names)]
    return {
        "data": {"values": values},
        "transform": [here, {"filter": "datum.s >= from_s && datum.s <= to_s"}],
        "mark": {"type": "line", "interpolate": "step-after", "clip": True, "strokeWidth": 1.5},
        "encoding": {
            "x": time | {"field": "s"},
            "y": {"field": "y", "type": "quantitative", "title": title, **scale, "axis": {"tickCount": 3}},
            "color": {"field": "k", "type": "nominal", "title": None, "scale": {"domain": names, "range": colours}},
            "tooltip": [
                {"field": "k", "title": "of"},
                {"field": "s", "title": "at (s)", "format": ".1f"},
                {"field": "y", "title": title, "format": ".4~g"},
            ],
        },
        "width": "container",
        "height": 90,
    }


def _requests(load: Load, sources: pd.DataFrame) -> list[dict[str, Any]]:
    sent = load.rows[load.rows["actual_start_s"].notna()].sort_values("actual_start_s")
    most = sources.idxmax(axis=1)
    found = []
    for index, row in zip(sent.index, sent.to_dict("records"), strict=True):
        start, end, first = (_seconds(row[name]) for name in ("actual_start_s", "last_token_s", "first_token_s"))
        kind = str(most[index]) if index in most.index else "failed"
        each: dict[str, Any] = {"c": load.cell, "u": int(row["user"]), "r": int(row["round"]), "k": kind, "s": start}
        each["e"] = end if end is not None else (start or 0.0)
        each["v"] = str(row["server"]) if kind != "failed" else f"{row['status']}: {str(row['error'])[:120]}"
        if kind != "failed" and first is not None and start is not None:
            each |= {"t": round(first - start, 4), "p": int(row["prompt_tokens"]), "x": int(sources["computed"][index])}
        found.append(each)
    return found


def _seconds(value: object) -> float | None:
    found = float(value)  # type: ignore[arg-type]
    return None if np.isnan(found) else round(found, 3)


def _moved(load: Load, sources: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what was loaded from L1 and from L2 over time: of each request between its send and its first token."""
    done = load.answered
    levels = [name for name in ("L1", "L2") if name in sources and sources[name].sum() > 0]
    if not levels or done.empty:
        return []
    _, _, kv_bytes = sizes(load)
    end = float(done["last_token_s"].max())
    edges = np.linspace(0, end, _BINS + 1)
    start, first = done["actual_start_s"].to_numpy(dtype=float), done["first_token_s"].to_numpy(dtype=float)
    length = np.maximum(first - start, 1e-6)
    found = []
    for name in levels:
        # The share of each request's loading that lies before each edge; differences of it are what a bin has.
        before = np.zeros(len(edges))
        weight = sources[name].to_numpy(dtype=float)
        for at in range(0, len(start), _BLOCK):  # a matrix of all edges and requests would take gigabytes
            part = slice(at, at + _BLOCK)
            before += np.clip((edges[:, None] - start[part]) / length[part], 0, 1) @ weight[part]
        rate = np.diff(before) / (edges[1] - edges[0]) * (kv_bytes / 1e6 if kv_bytes else 1)
        what = "storage" if kv_bytes else "tokens"
        keep = np.flatnonzero(np.r_[True, np.abs(np.diff(rate)) > 1e-9])
        found += [
            {"c": load.cell, "what": what, "k": name, "s": round(float(edges[i]), 2), "y": float(f"{rate[i]:.4g}")}
            for i in keep
        ]
    return found


def _gpus(load: Load) -> list[dict[str, Any]]:
    if load.gpus.empty:
        return []
    known = load.gpus.dropna(subset=["utilization_gpu_percent"])
    return [
        {"c": load.cell, "what": "gpu", "k": f"GPU {index} {node}".rstrip(), "s": round(float(at), 1), "y": int(busy)}
        for index, node, at, busy in zip(
            known["gpu_index"], known["node"], known["since_start_s"], known["utilization_gpu_percent"], strict=True
        )
    ]


def _table(load: Load, sources: pd.DataFrame) -> list[tuple[str, ...]]:
    failed = load.rows[load.rows["actual_start_s"].notna() & ~load.rows.index.isin(load.answered.index)]
    rows = []
    for at, mine in load.answered.groupby("round"):
        sums = sources.loc[mine.index].sum()
        tokens = [f"{sums[name]:.0f}" if name in sums else "-" for name in _ORDER if name != "failed"]
        prompts = number(float(mine["prompt_tokens"].sum()), 9)
        lost = str(int((failed["round"] == at).sum()))
        rows.append((load.cell, str(at), str(len(mine)), lost, prompts, *tokens, load.rows_file))
    return rows
