"""How TTFT is distributed, and how it grows by round as caches overflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pytest_kvcache.report import vega
from pytest_kvcache.report.html.kv_sources import sizes
from pytest_kvcache.report.html.loads import Load
from pytest_kvcache.report.html.page import FILE, Figure, Section, Table, number, once

#: Points of a curve: more would be finer than the screen.
_POINTS = 120


def section(loads: Sequence[Load]) -> Section:
    """Return the distribution of TTFT and its course over rounds, a curve a tier, for each context.

    Args:
        loads: All; curves are of valid ones, boots of a cell together.
    """
    groups: dict[tuple[int, str], list[Load]] = {}
    for load in loads:
        if load.valid and not load.answered.empty:
            groups.setdefault((load.context_tokens, load.label), []).append(load)
    if not groups:
        return Section("ttft", "TTFT")
    contexts = sorted({context for context, _ in groups})
    labels = list(dict.fromkeys(label for _, label in groups))
    return Section(
        key="ttft",
        title="TTFT: its distribution, and its course over rounds",
        intro=(
            "TTFT is the time from the last byte of a request to the first token of its answer, by the kernel's "
            "stamps. Boots of a cell are taken together here; verdicts rest on boots, never on single requests."
        ),
        figures=(_distribution(groups, contexts, labels), _rounds(groups, contexts, labels)),
    )


def _distribution(groups: dict[tuple[int, str], list[Load]], contexts: list[int], labels: list[str]) -> Figure:
    values: list[dict[str, Any]] = []
    rows = []
    for (context, label), loads in sorted(groups.items(), key=lambda each: each[0][0]):
        ttft_s = pd.concat([load.answered["ttft_s"] for load in loads]).to_numpy(dtype=float)
        shares = np.linspace(0, 1, min(_POINTS, len(ttft_s)) if len(ttft_s) > 1 else 2)
        for share, value in zip(shares, np.quantile(ttft_s, shares), strict=True):
            values.append({"label": label, "cell": str(context), "ttft": _round(value), "share": round(share, 4)})
        told = [number(float(each)) for each in np.quantile(ttft_s, (0.5, 0.9, 0.99))]
        files = ", ".join(once(load.rows_file for load in loads))
        rows.append((label, str(context), str(len(ttft_s)), number(float(ttft_s.mean())), *told, files))
    looks = vega.looks(labels)
    body = {
        "data": {"values": values},
        "params": [{"name": "cell", "value": str(contexts[-1])}, {"name": "hidden", "value": []}],
        "transform": [
            {"filter": "datum.cell == cell && indexof(hidden, datum.label) < 0 && datum.ttft > 0"},
        ],
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "tooltip": True},
        "encoding": {
            "x": {
                "field": "ttft",
                "type": "quantitative",
                "title": "TTFT (s)",
                "scale": {"type": "log", "nice": False},
                "axis": {"format": ".2~g", "labelOverlap": True},
            },
            "y": vega.SHARE_WITHIN,
            "color": looks["color"],
            "strokeDash": looks["strokeDash"],
            "tooltip": [
                {"field": "label", "title": "tier"},
                {"field": "share", "title": "share of answers within", "format": ".1%"},
                {"field": "ttft", "title": "TTFT (s)", "format": ".4~g"},
            ],
        },
        "width": "container",
        "height": 300,
    }
    columns = ("tier", "context", "answers", "mean s", "p50 s", "p90 s", "p99 s", FILE)
    return Figure(
        key="ttft-ecdf",
        title="TTFT: share of answers within a time (ECDF)",
        spec=vega.chart(body, colours=vega.PAGE),
        text="A curve a tier. Further left is sooner. The table has mean and percentiles.",
        sources=once(load.rows_file for loads in groups.values() for load in loads),
        table=Table("TTFT of answered requests", columns, tuple(rows)),
        choices=tuple(map(str, contexts)),
    )


def _rounds(groups: dict[tuple[int, str], list[Load]], contexts: list[int], labels: list[str]) -> Figure:
    values: list[dict[str, Any]] = []
    bends: list[dict[str, Any]] = []
    rows = []
    for (context, label), loads in sorted(groups.items(), key=lambda each: each[0][0]):
        done = pd.concat([load.answered for load in loads])
        held = _held_by_round(loads[-1])
        files = ", ".join(once(load.rows_file for load in loads))
        for number_, mine in done.groupby("round"):
            low, middle, high = (_round(float(each)) for each in mine["ttft_s"].quantile([0.1, 0.5, 0.9]))
            at_round = int(str(number_))
            at = {"label": label, "cell": str(context), "round": at_round}
            values.append(at | {"middle": middle, "low": low, "high": high, "answers": len(mine)})
            kv = held.get(at_round)
            told = [number(each) for each in (middle, low, high)]
            rows.append((label, str(context), str(at_round), str(len(mine)), *told, f"{kv:.0f}" if kv else "-", files))
        bends += [
            {"label": label, "cell": str(context), "round": full, "what": f"{what} full"}
            for what, full in _overflows(loads[-1], held)
        ]
    looks = vega.looks(labels)
    here = {"filter": "datum.cell == cell && indexof(hidden, datum.label) < 0"}
    x = {
        "field": "round",
        "type": "quantitative",
        "title": "round of the user",
        "axis": {"tickMinStep": 1},
        "scale": {"padding": 16},
    }
    y = {"type": "quantitative", "title": "TTFT (s)", "axis": {"format": ".3~g"}}
    told_of = [{"field": name, "format": ".4~g"} for name in ("middle", "low", "high")]
    tooltip = [{"field": "label", "title": "tier"}, {"field": "round"}, *told_of, {"field": "answers"}]
    body = {
        "params": [{"name": "cell", "value": str(contexts[-1])}, {"name": "hidden", "value": []}],
        "data": {"values": values},
        "layer": [
            {
                "transform": [here],
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": looks["color"]},
            },
            {
                "transform": [here],
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"x": x, "y": y | {"field": "middle"}, "color": looks["color"]},
            },
            {
                "transform": [here],
                "mark": {"type": "point", "filled": True, "size": 45},
                "encoding": {
                    "x": x,
                    "y": y | {"field": "middle"},
                    "color": looks["color"],
                    "shape": looks["shape"],
                    "tooltip": tooltip,
                },
            },
            {
                "data": {"values": bends},
                "transform": [here],
                "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5},
                "encoding": {
                    "x": x,
                    "color": looks["color"],
                    "tooltip": [{"field": "what"}, {"field": "label", "title": "tier"}, {"field": "round"}],
                },
            },
            {
                "data": {"values": bends},
                "transform": [here, {"aggregate": [], "groupby": ["round", "what"]}],
                "mark": {"type": "text", "angle": 270, "align": "right", "dx": -4, "dy": 9, "fontSize": 11},
                "encoding": {"x": x, "y": {"value": 0}, "text": {"field": "what"}},
            },
        ],
        "width": "container",
        "height": 300,
    }
    columns = ("tier", "context", "round", "answers", "p50 s", "p10 s", "p90 s", "KV of all users (tokens)", FILE)
    said = [f"{b['label']} at {b['cell']}: {b['what']} from round {b['round']} on" for b in bends]
    return Figure(
        key="ttft-rounds",
        title="TTFT by round: where curves bend",
        spec=vega.chart(body, colours=vega.PAGE),
        text=(
            "A line a tier through the medians, a band from the 10th to the 90th percentile. A broken line stands at "
            "the first round at which the histories of all users, at their longest so far, are more than the device "
            f"caches, or the L1 in CPU memory, of all servers have room for. {'; '.join(said) or 'No cache overflows.'}"
        ),
        sources=once(load.rows_file for loads in groups.values() for load in loads),
        table=Table("TTFT by round", columns, tuple(rows), folded=True),
        choices=tuple(map(str, contexts)),
    )


def _held_by_round(load: Load) -> dict[int, float]:
    """Return the tokens of all users' histories by round: of each user the longest prompt and answer up to it."""
    done = load.answered
    if done.empty:
        return {}
    whole = (done["prompt_tokens"].fillna(0) + done["generated_tokens"].fillna(0)).astype(float)
    by_user = whole.groupby([done["user"], done["round"]]).max().unstack("round").cummax(axis=1).ffill(axis=1)
    return {int(at): float(tokens) for at, tokens in by_user.sum().items()}  # type: ignore[call-overload]


def _overflows(load: Load, held: dict[int, float]) -> list[tuple[str, int]]:
    """Return each cache that the histories overflow, and from which round on."""
    device, l1_tokens, _ = sizes(load)
    servers = max(len(load.facts.proof.servers), 1)
    rooms = [("device", device.tokens if device else None), ("L1", l1_tokens)]
    found = []
    for what, room in rooms:
        at = next((number_ for number_, tokens in sorted(held.items()) if room and tokens > room * servers), None)
        if at is not None:
            found.append((what, at))
    return found


def _round(value: float) -> float:
    return float(f"{value:.5g}")
