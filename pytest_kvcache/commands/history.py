"""`pytest-kvcache history`: which run, commit and versions moved a cell, of what past runs have left."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.errors import ConfigError, ResultsError
from pytest_kvcache.history import index, moves
from pytest_kvcache.history.moves import State
from pytest_kvcache.load.table import first_line
from pytest_kvcache.load.table import read as requests_of
from pytest_kvcache.paths import argument
from pytest_kvcache.showable import visible
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS

Say = Callable[[str], None]
_FIGURES = tuple(metric.key for metric in DEFAULT_METRICS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "cell", nargs="?", default="", metavar="CELL", help="TIER, TIER/TOKENS or PROFILE/TIER/TOKENS (default: all)"
    )
    parser.add_argument(
        "--figure", action="append", metavar="NAME", help=f"of run.json; repeatable (default: {', '.join(_FIGURES)})"
    )
    parser.add_argument("--last", type=int, default=20, metavar="N", help="states to print, the newest (%(default)s)")
    parser.add_argument(
        "--sql", metavar="QUERY", help="a query of your own over the tables `loads` and `requests` (needs DuckDB)"
    )
    add_project_arguments(parser, reads_config=False)
    parser.add_argument("--kv-runs", type=argument, metavar="DIR", help="folder of runs; default: as for pytest")


def run(args: argparse.Namespace, say: Say) -> int:
    """Print the states of each cell that is named, and which of them moved.

    Raises:
        ConfigError: A flag has a wrong value, or DuckDB is needed and missing.
        ResultsError: There are no runs, or none of the cell.
    """
    if args.last < 1:
        raise ConfigError(f"must be 1 or more, not {args.last}", where="--last")
    runs = Path(located(args).runs)
    table = index.read(runs)
    if args.sql:
        return _query(table, args.sql, lambda text: say(visible(text)))
    _print(index.frame(table), runs, args, lambda line: say(visible(line.replace("\n", " "))))
    return 0


def _print(rows: pd.DataFrame, runs: Path, args: argparse.Namespace, say: Say) -> None:
    """Print the states of each cell that is named; raises as `run` does.

    Args:
        rows: Of `index.frame`.
        runs: Where they are from.
        args: Of the command.
        say: Prints a line. Names, commits and versions come from files that others may have made.
    """
    damaged = rows[rows["error"] != ""]
    for row in damaged.head(3).itertuples():
        say(f"left out: {row.path}: {row.error}")
    if len(damaged) > 3:
        say(f"left out: {len(damaged) - 3} more files that cannot be read")
    found = moves.matching(rows[rows["error"] == ""], args.cell)
    if found.empty:
        known = sorted({f"{row.tier}/{row.context_tokens}" for row in rows[rows["error"] == ""].itertuples()})
        raise ResultsError(
            f"no load of {args.cell}" if args.cell else "no load is there",
            where=str(runs),
            todo=f"known cells: {', '.join(known)[:300]}" if known else "run `pytest -m perf` first",
        )
    for (profile, machine, tier, context), of_cell in found.groupby(
        ["profile", "machine", "tier", "context_tokens"], sort=True
    ):
        parts = [each for each in (profile, tier, context) if each != ""]
        say(f"{'/'.join(map(str, parts))}{f' on {machine}' if machine else ''}: {len(of_cell)} loads")
        for figure in args.figure or _FIGURES:
            _tell(moves.states(of_cell, figure), figure, args.last, say)


def _tell(states: list[State], figure: str, last: int, say: Say) -> None:
    if not any(math.isfinite(state.mean) for state in states):
        say(f"  {figure}: no valid load has it")
        return
    say(f"  {figure}")
    if len(states) > last:
        say(f"    ({len(states) - last} older states are not shown: --last)")
    for state in states[-last:]:
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(0.0, min(state.started_at, 2**33))))
        line = f"    {day}  {state.first_run}  {state.boots} boots  {state.mean:.4g}"
        if math.isfinite(state.change):
            line += f"  {state.change:+.1%}"
            line += f" [{state.low:+.1%}, {state.high:+.1%}]" if math.isfinite(state.low) else " [spread unknown]"
        say(line + ("  MOVED" if state.moved else "") + (f"  {'; '.join(state.changed)}" if state.changed else ""))


def _query(table: Any, sql: str, say: Say) -> int:
    """Print what a query gives; the requests are read from the runs' own Parquet files, as the query needs them.

    Raises:
        ConfigError: DuckDB is not installed, or refuses the query.
    """
    try:
        import duckdb  # noqa: PLC0415 - an extra: nothing else needs its 69 MB
    except ImportError:
        raise ConfigError(
            "needs DuckDB, which is not installed", where="--sql", todo="pip install 'pytest-kvcache[history]'"
        ) from None
    files = [Path(path).with_name("requests.parquet") for path in table.column("path").to_pylist()]
    files = [path for path in files if path.is_file()]

    def answer() -> pd.DataFrame:
        with duckdb.connect(":memory:") as engine:
            engine.register("loads", table)
            if files and "requests" in sql:
                names = [str(path) for path in files]
                engine.read_parquet(names, filename=True, union_by_name=True).create_view("requests")
            result = engine.execute(sql)
            return result.df() if result.description else pd.DataFrame()

    try:
        try:
            frame = answer()
        except duckdb.Error:
            # Ten thousand files are looked at only where something is wrong.
            damage = _damage(files) if "requests" in sql else {}
            if not damage:
                raise
            for why in damage.values():
                say(f"left out: {why}")
            files = [path for path in files if path not in damage]
            frame = answer()
    except duckdb.Error as error:
        raise ConfigError(f"DuckDB: {first_line(error)}", where="--sql") from None
    say(frame.to_string(index=False, max_rows=1000, na_rep="-"))
    return 0


def _damage(files: Iterable[Path]) -> dict[Path, str]:
    """Return why tables of requests cannot be read, by their path; without those that can be."""
    found = {}
    for path in files:
        try:
            requests_of(path)
        except (OSError, ResultsError) as error:
            found[path] = str(error)
    return found
