"""The article's chart and its table: what each tier brings over context lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pytest_kvcache.report import chart, compared, texts, vega
from pytest_kvcache.report.compared import Change, Point
from pytest_kvcache.report.html.loads import Load
from pytest_kvcache.report.html.page import FILE, Figure, Section, Table, once, table_of
from pytest_kvcache.report.published import SETTING
from pytest_kvcache.report.series import FIGURES


def section(
    measured: pd.DataFrame, loads: Sequence[Load], *, against: Sequence[str], reference: bool, still: bool = True
) -> Section:
    """Return the chart, a panel a figure, and the tables of gains.

    Args:
        measured: Of `series.read`.
        loads: The same loads with all that they left.
        against: What tiers are held against.
        reference: Whether the article's published gains stand beside.
        still: Whether charts are drawn for browsers without scripts too.
    """
    places = {str(load.folder / "run.json"): load.facts_file for load in loads}
    measured = measured.assign(source=[_place(str(each), places) for each in measured["source"]])
    points = compared.points(measured)
    figures = []
    for figure in FIGURES:
        body = chart.panel(measured, figure)
        mine = [point for point in points if point.figure == figure]
        figures.append(
            Figure(
                key=f"chart-{figure.key.replace('_', '-')}",
                title=figure.label,
                spec=vega.chart({**body, "width": "container", "height": 260}, colours=vega.PAGE),
                text=_text(mine),
                sources=once(source for point in mine for source in point.sources),
                still=vega.svg(vega.chart({**body, "width": 340, "height": 260}, colours=vega.PAGE)) if still else "",
                wide=False,
            )
        )
    tables = [_points(points)]
    for other in against:
        found = compared.changes(measured, against=other)
        if found:
            tables += [
                table_of(f"{_held(other)}: up to (the most gained over all contexts)", _best(found)),
                _changes(found, f"{_held(other)}, at each context; in brackets the {compared.INTERVAL}"),
            ]
    if reference:
        figures += [_gains(measured, against)]
        caption = f"Published, not measured here: up to ({SETTING})"
        tables.append(table_of(caption, texts.published_table(against), source="published by the reference article"))
    return Section(
        key="chart",
        title="Speed, TTFT and decode against context",
        intro=(
            f"{chart.below(measured, reference=reference)}. Lines go through geometric means of valid boots; small "
            "points are boots. Processing speed counts prompt and generated tokens of finished requests."
        ),
        figures=tuple(figures),
        tables=tuple(tables),
    )


def _place(source: str, places: dict[str, str]) -> str:
    return places.get(str(Path(source).absolute()), source)


def _held(other: str) -> str:
    text = chart.held(other)
    return text[:1].upper() + text[1:]


def _text(points: Sequence[Point]) -> str:
    if not points:
        return "No boot has this figure."
    said = [f"{p.label} at {p.context_tokens} tokens: {texts.with_interval(p)}" for p in points]
    return "; ".join(said)


def _points(points: Sequence[Point]) -> Table:
    cells: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        cells.setdefault((point.label, point.context_tokens), []).append(point)
    rows = []
    for (label, context), mine in cells.items():
        found = {point.figure.key: texts.with_interval(point) for point in mine}
        files = ", ".join(once(source for point in mine for source in point.sources))
        rows.append(
            (label, str(context), *(found.get(f.key, "-") for f in FIGURES), str(max(p.boots for p in mine)), files)
        )
    columns = ("tier", "context", *(figure.label for figure in FIGURES), "boots", FILE)
    return Table(f"Means over boots; in brackets the {compared.INTERVAL}", columns, tuple(rows))


def _best(found: Sequence[Change]) -> pd.DataFrame:
    files: dict[str, list[str]] = {}
    for each in compared.best_of(found):
        files.setdefault(each.label, []).extend(each.sources)
    frame = compared.best_table(found)
    return frame.assign(**{FILE: [", ".join(once(files[label])) for label in frame["tier"]]})


def _changes(found: Sequence[Change], caption: str) -> Table:
    frame = compared.table(found)
    files = {(each.label, str(each.context_tokens)): each.sources for each in found}
    of_rows = [", ".join(once(files[key])) for key in zip(frame["tier"], frame["context"], strict=True)]
    return table_of(caption, frame.assign(**{FILE: of_rows}))


def _gains(measured: pd.DataFrame, against: Sequence[str]) -> Figure:
    panels = [{**chart.gain_panel(measured, figure, against), "width": 230} for figure in FIGURES]
    return Figure(
        key="gains",
        title="Most gained over all contexts, beside what the article published",
        spec=vega.chart({"hconcat": panels}, colours=vega.PAGE),
        text="The tables below have the same numbers: up to, for each tier, and as published.",
    )
