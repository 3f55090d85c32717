"""`pytest-kvcache export`: writes the results of finished runs as other tools read them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from pytest_kvcache.errors import ConfigError, ResultsError
from pytest_kvcache.interop import boots, llmd, otlp, prometheus
from pytest_kvcache.interop.boots import LeftLoad
from pytest_kvcache.load import records
from pytest_kvcache.paths import argument
from pytest_kvcache.runs.files import write_text
from pytest_kvcache.workload import reference_csv

Say = Callable[[str], None]

#: Formats with a file for all loads, and those with a file for each load; each with the ending of its files.
_TOGETHER: dict[str, tuple[str, Callable[[Sequence[LeftLoad]], str]]] = {
    "prometheus": (".prom", prometheus.text),
    "openmetrics": (".om", prometheus.openmetrics_text),
    "otlp": (".otlp.json", otlp.text),
}
#: What `--push` does with the figures of a format.
_PUSHED: dict[str, Callable[..., None]] = {
    "prometheus": prometheus.push,
    "openmetrics": prometheus.push,
    "otlp": otlp.push,
}
_NEWEST = "0.2"
_LLMD = {"llm-d": _NEWEST, **{f"llm-d-{version}": version for version in llmd.VERSIONS}}
_CSV = "reference-csv"
FORMATS = (*_LLMD, *_TOGETHER, _CSV)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("runs", type=argument, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--to", choices=FORMATS, required=True, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument(
        "--output",
        type=_output,
        metavar="FILE",
        help="a file, or a folder for a file a load (default: standard output)",
    )
    parser.add_argument("--tier", action="append", default=[], metavar="NAME", help="only this tier; repeatable")
    parser.add_argument(
        "--context", action="append", default=[], type=int, metavar="TOKENS", help="only this length; repeatable"
    )
    parser.add_argument(
        "--push",
        "--endpoint",
        metavar="URL",
        help="of a Pushgateway (with --to prometheus or openmetrics), or of a collector that takes OTLP over HTTP "
        "(with --to otlp): the figures go there",
    )
    parser.add_argument(
        "--job", default=otlp.JOB, metavar="NAME", help="group of --push, or service.name of OTLP (%(default)s)"
    )


def _output(text: str) -> tuple[Path, bool]:
    """Return the path of `--output`, and whether it is a folder: a path forgets the / at its end."""
    path = argument(text)
    return path, text.endswith("/") or path.is_dir() or not path.suffix


def run(args: argparse.Namespace, say: Say) -> int:
    """Write or push what was asked for.

    Raises:
        ConfigError: Flags do not fit each other, or several loads are to be written into one file.
        ResultsError: There is no valid load, or a file of one cannot be read.
        OSError: A file cannot be written.
    """
    if args.push and (args.to not in _PUSHED or args.output):
        raise ConfigError(f"goes with --to {', '.join(_PUSHED)}, and without --output", where="--push")
    for folder in args.runs:
        if not folder.is_dir():
            raise ConfigError("is no folder of a run", where=str(folder), todo="name a folder of .kvcache/runs")
    loads, left_out = boots.find(args.runs, tiers=args.tier, contexts=args.context)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if args.push:
        _PUSHED[args.to](loads, args.push, job=args.job)
        say(f"pushed {len(loads)} loads")
        return 0
    if args.to in _TOGETHER:
        ending, write = _TOGETHER[args.to]
        return _write({f"kvcache{ending}": write(loads)}, args.output, say)
    path, is_folder = args.output or (None, False)
    if len(loads) > 1 and not is_folder:
        raise ConfigError(
            f"{args.to} has a file for each load, and there are {len(loads)}",
            where="--output",
            todo="name a folder (with / at its end, or one that is there), or choose by --tier and --context",
        )
    # JSON where a file's name says so, as llm-d's own loader takes either.
    as_json = path is not None and path.suffix == ".json" and not is_folder
    return _write(dict(_file(load, args.to, as_json=as_json) for load in loads), args.output, say)


def _file(load: LeftLoad, to: str, *, as_json: bool) -> tuple[str, str]:
    """Return name and content of a load's own file."""
    if to == _CSV:
        if load.facts.load.started_at is None:
            raise ResultsError("load.started_at: is missing, and the CSV needs it", where=str(load.folder / boots.RUN))
        rows = load.rows()
        lacking = int(
            rows[rows["status"] == records.OK][["prompt_tokens", "generated_tokens"]].isna().any(axis=1).sum()
        )
        if lacking:
            raise ResultsError(
                f"{lacking} finished requests have no token counts, which the CSV needs", where=str(load.folder)
            )
        table = reference_csv.csv_table(rows, started_at=load.facts.load.started_at)
        return f"{load.name}.csv", table.to_csv(index=False)
    report = llmd.report(load, _LLMD[to])
    if as_json:
        return f"{load.name}.json", json.dumps(report, indent=2, allow_nan=False) + "\n"
    return f"{load.name}.yaml", yaml.safe_dump(report, sort_keys=False, allow_unicode=True)


def _write(files: dict[str, str], output: tuple[Path, bool] | None, say: Say) -> int:
    if output is None:
        for content in files.values():
            say(content.removesuffix("\n"))
        return 0
    path, is_folder = output
    for name, content in files.items():
        target = path / name if is_folder else path
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_text(target, content)
        say(f"written: {target}")
    return 0
