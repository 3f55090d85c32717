"""`pytest-kvcache report`: the chart and the table of runs that are over, from the files that they left."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

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
        ConfigError: There is nothing to draw, or not so, or not there.
    """
    rows = series.read(args.runs or [_newest(located(args).runs)])
    table = series.means(rows)
    say(table.to_string(index=False, float_format="{:.4g}".format))
    for best in series.best_tables(table, against=args.against or series.YARDSTICKS):
        say(f"\n{best}")
    for line in rows.attrs["left_out"]:
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


def _newest(runs: Path) -> Path:
    found = sorted(path for path in runs.glob("*") if any(path.rglob("run.json"))) if runs.is_dir() else []
    if not found:
        raise ConfigError("no run is there", where=str(runs), todo="name one, or run `pytest -m perf` first")
    return found[-1]
