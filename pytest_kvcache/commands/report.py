"""`pytest-kvcache report`: draws the chart and prints the table of finished runs, from their files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.paths import argument
from pytest_kvcache.report import chart, series
from pytest_kvcache.runs.files import replace_whole

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "runs",
        type=argument,
        nargs="*",
        metavar="RUN",
        help="folders of runs, such as those of one CI job a tier (default: the newest of the folder of runs)",
    )
    add_project_arguments(parser, reads_config=False)
    parser.add_argument("--kv-runs", metavar="DIR", help="folder of runs; default: as for pytest")
    parser.add_argument(
        "--chart", type=argument, default=Path("kvcache.svg"), metavar="FILE", help=".svg, .png or .pdf"
    )
    parser.add_argument("--csv", type=argument, metavar="FILE", help="the chart's data too: a row a boot")
    parser.add_argument(
        "--against",
        action="append",
        metavar="TIER",
        help="what tiers are held against, as the chart names it; repeatable (default: gpu and cpu)",
    )


def run(args: argparse.Namespace, say: Say) -> int:
    """Print the tables and draw the chart.

    Raises:
        ConfigError: A run is not there, has nothing to draw, or the chart or the CSV file cannot be written as asked.
    """
    rows, passed_over = (series.read(args.runs), []) if args.runs else _newest(located(args).runs)
    table = series.means(rows)
    say(table.to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    for best in series.best_tables(table, against=args.against or series.YARDSTICKS):
        say(f"\n{best}")
    for line in (*passed_over, *rows.attrs["left_out"]):
        say(f"\nleft out: {line}")
    for row in rows[rows["faults"] != ""].itertuples():
        say(f"\ninvalid, and in no figure: {row.label} at {row.context_tokens}: {row.faults}")
    try:
        if args.csv:
            replace_whole(args.csv, lambda partial: rows.to_csv(partial, index=False))
        say(f"\nchart: {chart.draw(rows, args.chart)}")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be drawn: {error}", where=str(args.chart)) from None
    return 0


def _newest(runs: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the newest run that has figures, and a line on each newer run that has none.

    Raises:
        ConfigError: No run has figures.
    """
    passed_over: list[str] = []
    for run in sorted((path for path in runs.glob("*") if path.is_dir()), reverse=True):
        try:
            return series.read([run]), passed_over
        except series.NothingMeasuredError as error:
            passed_over.append(f"{run}: {error.what}")
    what = f"no run is there that has figures: {'; '.join(passed_over)}" if passed_over else "no run is there"
    raise ConfigError(what, where=str(runs), todo="name one, or run `pytest -m perf` first")
