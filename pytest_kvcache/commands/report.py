"""`pytest-kvcache report`: the chart, the table and the HTML report of finished runs, from their files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.paths import argument
from pytest_kvcache.report import chart, compared, series, texts
from pytest_kvcache.report.html import document
from pytest_kvcache.runs.files import write_text

Say = Callable[[str], None]

FORMATS = ("html", "svg", "png", "pdf", "md", "csv", "json")
#: What stands for the terminal in place of a file.
STDOUT = Path("-")


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
        "--format", choices=FORMATS, help="what to write (default: by the suffix of --output, else html)"
    )
    parser.add_argument(
        "--output",
        type=argument,
        metavar="FILE",
        help="where to (default: kvcache.FORMAT); - prints md, csv or json and nothing else",
    )
    parser.add_argument(
        "--reference", action="store_true", help="draw what the reference article published beside, marked as published"
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="TIER",
        help="what tiers are held against, as the chart names it; repeatable (default: gpu and cpu)",
    )


def run(args: argparse.Namespace, say: Say) -> int:
    """Print the tables and write the report.

    Raises:
        ConfigError: A run is not there, has nothing to draw, or the file cannot be written as asked.
    """
    kind, path = _output(args.format, args.output)
    rows, passed_over = (series.read(args.runs), []) if args.runs else _newest(located(args).runs)
    left_out = [*passed_over, *rows.attrs["left_out"]]
    against = tuple(args.against or series.YARDSTICKS)
    if path != STDOUT:
        _print_tables(rows, against, left_out, say)
    try:
        if kind == "html":
            document.write(rows, path, against=against, reference=args.reference, left_out=left_out)
        elif kind in ("svg", "png", "pdf"):
            chart.draw(rows, path, reference=args.reference, against=against)
        else:
            written = {"md": texts.markdown, "json": texts.as_json}
            text = (
                texts.csv(rows)
                if kind == "csv"
                else written[kind](rows, against=against, reference=args.reference, left_out=left_out)
            )
            if path == STDOUT:
                say(text.removesuffix("\n"))
                return 0
            write_text(path, text)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot be written: {why}", where=str(path)) from None
    say(f"\nreport: {path}")
    return 0


def _output(kind: str | None, path: Path | None) -> tuple[str, Path]:
    """Return what is to be written, and where to.

    Raises:
        ConfigError: The two do not fit each other.
    """
    if path is None:
        kind = kind or "html"
        return kind, Path(f"kvcache.{kind}")
    known = ", ".join(FORMATS)
    if path == STDOUT:
        if kind not in ("md", "csv", "json"):
            raise ConfigError(f"--output - prints text, not {kind or 'html'}", todo="use --format md, csv or json")
        return kind, path
    suffix = path.suffix.removeprefix(".").lower()
    if kind is None and suffix not in FORMATS:
        raise ConfigError("its suffix is no format", where=str(path), todo=f"use --format, or one of: {known}")
    if kind in ("svg", "png", "pdf") and suffix != kind:
        raise ConfigError(f"is not the name of a .{kind} file", where=str(path), todo=f"end it in .{kind}")
    return kind or suffix, path


def _print_tables(rows: pd.DataFrame, against: tuple[str, ...], left_out: list[str], say: Say) -> None:
    table = series.means(rows)
    none = "no figure may rest on any boot: all of them are invalid"
    say(none if table.empty else table.to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    for other in against:
        if found := compared.changes(rows, against=other):
            text = compared.table(found).to_string(index=False)
            told = f", in brackets the {compared.INTERVAL}" if any(each.low is not None for each in found) else ""
            say(f"\nagainst {other}{told}:\n{text}")
    for best in compared.best_tables(rows, against=against):
        say(f"\n{best}")
    for line in left_out:
        say(f"\nleft out: {line}")
    for line in texts.invalid(rows):
        say(f"\ninvalid, and in no figure: {line}")


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
