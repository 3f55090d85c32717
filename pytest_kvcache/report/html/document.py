"""Makes the page: reads the loads, asks each section for its part, fills the template, writes one file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.report import chart, series, vega, verdict_file
from pytest_kvcache.report.html import breakdown, facts, history, ledger, overview, timeline, ttft, verdicts
from pytest_kvcache.report.html.loads import Load, read_loads
from pytest_kvcache.report.html.page import FILE, Figure, Section
from pytest_kvcache.report.series import YARDSTICKS
from pytest_kvcache.runs.files import write_text
from pytest_kvcache.showable import visible

#: Of the report in a run's folder.
NAME = "report.html"
_FOLDER = Path(__file__).parent


def write(
    measured: pd.DataFrame,
    path: Path,
    *,
    against: Sequence[str] = YARDSTICKS,
    reference: bool = False,
    left_out: Sequence[str] = (),
    still: bool = True,
) -> Path:
    """Write the report of all loads of a table of runs and return the file.

    Args:
        measured: Of `series.read`.
        path: Of the file.
        against: What tiers are held against.
        reference: Whether the article's published gains stand beside.
        left_out: What left no figures, a line each.
        still: Whether the first charts are drawn for browsers without scripts too.

    Raises:
        OSError: It could not be written.
        ConfigError: The plugin's folder, which keeps the script of all pages, cannot be written.
    """
    loads, unread = read_loads(measured)
    found = sections(measured, loads, against=against, reference=reference, still=still)
    text = html(
        f"KV cache report: {chart.heading(measured)}",
        f"{measured['hardware'].iloc[0]}; {', '.join(sorted({load.session.name for load in loads}))}",
        found,
        lines=[*left_out, *unread],
        tiers=chart.labels(measured),
    )
    write_text(path, text)
    return path


def of_session(folder: Path) -> Path:
    """Write the report of a session into its run's folder and return the file.

    Charts are not drawn a second time for browsers without scripts, which would take the longest part of the time.

    Args:
        folder: Of the run.

    Raises:
        ConfigError: The session measured nothing, or unlike things.
        OSError: It could not be written.
    """
    measured = series.read([folder])
    return write(measured, folder / NAME, left_out=measured.attrs["left_out"], still=False)


def sections(
    measured: pd.DataFrame, loads: Sequence[Load], *, against: Sequence[str], reference: bool, still: bool
) -> list[Section]:
    """Return all sections that have something to show, in order."""
    sessions = list(dict.fromkeys(load.session for load in loads))
    told = {each: known for each in sessions if (known := verdict_file.read(each)) is not None}
    before = history.past_sessions(sessions)
    past = [] if before is None else read_loads(before, facts_only=True)[0]
    made = [
        overview.section(measured, loads, against=against, reference=reference, still=still),
        verdicts.section(loads, told),
        ttft.section(loads),
        timeline.section(loads),
        ledger.section(loads),
        breakdown.section(loads),
        history.section(loads, told, past),
        facts.probes(loads),
        facts.environment(loads),
        facts.commands(loads),
    ]
    return [each for each in made if not each.empty]


def html(
    title: str, subtitle: str, found: Sequence[Section], *, lines: Sequence[str] = (), tiers: Sequence[str] = ()
) -> str:
    """Return the page.

    Args:
        title: Its heading.
        subtitle: Below it.
        found: Its sections.
        lines: What is not in it, and why.
        tiers: What a reader can hide in charts.
    """
    # Most sessions make no page, and this takes a tenth of a second.
    import jinja2  # noqa: PLC0415

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["shown"] = visible
    charts = {figure.key: _chart(figure) for each in found for figure in each.figures}
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=found,
        lines=lines,
        tiers=tiers,
        file=FILE,
        version=version("pytest-kvcache"),
        style=(_FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "script.js").read_text(encoding="utf-8"),
        vega=vega.javascript().replace("</script", "<\\/script"),
        charts=vega.json_for_html(charts),
    )


def _chart(figure: Figure) -> dict[str, Any]:
    return {"spec": figure.spec, "span_s": figure.span_s}
