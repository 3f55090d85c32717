"""`pytest-kvcache import`: makes the folder of a run of other tools' results, to stand beside ours in reports."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable

from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.interop import folder
from pytest_kvcache.interop.boots import Imported
from pytest_kvcache.interop.folder import READERS, Told
from pytest_kvcache.paths import argument

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", type=argument, nargs="+", metavar="FILE", help="each becomes a boot of its own")
    parser.add_argument("--from", dest="tool", choices=READERS, required=True, help="the tool that wrote them")
    parser.add_argument(
        "--context", type=int, required=True, metavar="TOKENS", help="length of the user context: files do not tell it"
    )
    parser.add_argument("--label", required=True, metavar="NAME", help="what was measured, as tables name it")
    parser.add_argument("--machine", default="", metavar="TEXT", help="hardware, as tables name it")
    parser.add_argument("--model", default="", metavar="NAME", help="default: the file's")
    add_project_arguments(parser, reads_config=False)
    parser.add_argument("--kv-runs", metavar="DIR", help="folder of runs; default: as for pytest")


def run(args: argparse.Namespace, say: Say) -> int:
    """Read all files, then write the run; nothing is written where one of them cannot be read.

    Raises:
        ConfigError: A flag has a wrong value, or two files are the same.
        ResultsError: A file is none of the tool's, is of an unknown version, or has a wrong value.
        OSError: The run's folder cannot be written.
    """
    if not 0 < args.context < 10**9:
        raise ConfigError(f"must be from 1 to 999999999, not {args.context}", where="--context")
    if not args.label.strip() or not args.label.isprintable() or len(args.label) > 80:
        raise ConfigError("must be one line of 1 to 80 characters", where="--label")
    read = [(path, READERS[args.tool](path)) for path in args.files]
    files = [
        (
            Imported(
                tool=args.tool,
                file=str(path).encode("utf-8", "replace").decode(),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            ),
            series,
        )
        for path, series in read
    ]
    known: dict[str, str] = {}
    for imported, _ in files:
        if imported.sha256 in known:
            raise ConfigError(f"is {known[imported.sha256]} again, and a boot counts once", where=imported.file)
        known[imported.sha256] = imported.file
    told = Told(args.label.strip(), args.context, args.machine, args.model)
    written = folder.write(located(args).runs, told, files)
    for path, series in read:
        for each in series:
            done = sum(request.status == "ok" for request in each.requests)
            failed = len(each.requests) - done
            say(f"{path}{f' ({each.name})' if each.name else ''}: {done} finished requests, {failed} others")
            for note in each.notes:
                say(f"note: {note}")
    say(f"imported, to stand beside others and to be compared with none: {written}")
    return 0
