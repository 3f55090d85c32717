"""What a page is made of: sections with figures and tables, as data. The template alone makes HTML of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pytest_kvcache.report import vega

#: Name of the column that says which file a row's numbers are from.
FILE = "file"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        caption: What it shows, as a sentence without its period.
        columns: Their headings; one that is named `FILE` says where a row's numbers are from.
        rows: A text a column.
        source: The file of all rows, where no column says it.
        folded: Whether a reader has to open it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart.

    Args:
        key: Of letters and hyphens, unique on the page.
        title: A line above it.
        spec: Of `vega.chart`, without a width: it gets the page's.
        text: What a person sees in it who looks at it, for those who do not.
        sources: The files that its numbers are from.
        table: The same numbers as a table, where they are few enough to be read.
        choices: Values of the chart's parameter `cell`, one of which a reader chooses; none where it has no such one.
        still: The chart as SVG, for browsers that run no scripts; "" for none.
        wide: Whether it takes the whole width of the page.
        span_s: The length of its time axis, of which a reader chooses a part; 0 where it has none.
    """

    key: str
    title: str
    spec: vega.Spec
    text: str
    sources: tuple[str, ...] = ()
    table: Table | None = None
    choices: tuple[str, ...] = ()
    still: str = ""
    wide: bool = True
    span_s: float = 0.0


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        key: Of letters and hyphens, unique on the page.
        title: Its heading.
        intro: What it shows and how to read it, in sentences.
        figures: Charts.
        tables: Tables.
        lines: Sentences below.
    """

    key: str
    title: str
    intro: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = field(default=())

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.figures or self.tables or self.lines)


def table_of(caption: str, frame: pd.DataFrame, *, source: str = "", folded: bool = False) -> Table:
    """Return a table of the texts of a frame."""
    rows = tuple(tuple(map(str, row)) for row in frame.itertuples(index=False))
    return Table(caption, tuple(map(str, frame.columns)), rows, source, folded)


def once(sources: Iterable[str]) -> tuple[str, ...]:
    """Return each source once, in order."""
    return tuple(dict.fromkeys(sources))


def number(value: float | None, digits: int = 4) -> str:
    """Return a number of some digits, "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if 10 ** (digits - 1) <= abs(value) < 1e15 else f"{value:.{digits}g}"


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence has them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"
