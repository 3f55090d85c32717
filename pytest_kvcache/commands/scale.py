"""`pytest-kvcache scale`: how a run grows with servers and users, by measuring its parts on this machine.

Nothing is booted. Each part is the code of a run at its work: the client against a stub server, tables that are
written, reports that are made, the procedure that decides. What is assumed is said.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from pytest_kvcache.campaign.boots import USERS_APART
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.paths import argument
from pytest_kvcache.runs.files import write_text
from pytest_kvcache.scaling import growth
from pytest_kvcache.scaling.point import Point

Say = Callable[[str], None]
_SIZES = ("2:15", "4:100", "8:300", "16:1000", "32:3000", "64:10000")
_MOST_SERVERS, _MOST_USERS = 1024, 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="SERVERS:USERS",
        help=f"a size of a run; repeatable ({' '.join(_SIZES)})",
    )
    parser.add_argument("--context", type=int, default=9000, metavar="TOKENS", help="length of user contexts (9000)")
    parser.add_argument("--time", type=float, default=1200.0, metavar="SECONDS", help="length of a load (1200)")
    parser.add_argument(
        "--rows", type=int, default=100_000, metavar="N", help="largest table to write; larger ones are scaled (100000)"
    )
    parser.add_argument("--node-processors", type=int, metavar="N", help="of a load node (default: this machine's)")
    parser.add_argument("--boot-s", type=float, default=180.0, metavar="SECONDS", help="assumed: of a boot (180)")
    parser.add_argument(
        "--prefill-s", type=float, default=0.4, metavar="SECONDS", help="assumed: of a prompt of the priming (0.4)"
    )
    parser.add_argument("--output", type=argument, metavar="FILE", help="the table as Markdown")


def run(args: argparse.Namespace, say: Say) -> int:
    """Measure, print the table and write it; return the exit code."""
    points = [_point(text, args) for text in args.size or _SIZES]
    assumed = growth.Assumed(boot_s=args.boot_s, prefill_s=args.prefill_s, users_apart=USERS_APART)
    if args.node_processors is not None:
        assumed = dataclasses.replace(assumed, processors=_within(args.node_processors, 1, 4096, "--node-processors"))
    effort = growth.Effort(rows=_within(args.rows, 100, 10_000_000, "--rows"))
    grown, lines = growth.grow(points, assumed=assumed, effort=effort, say=say)
    for line in growth.terminal(grown, lines):
        say(line)
    if args.output is not None:
        write_text(Path(args.output), growth.markdown(grown, lines))
        say(f"written: {args.output}")
    return 0


def _point(text: str, args: argparse.Namespace) -> Point:
    servers, colon, users = text.partition(":")
    if not colon or not servers.isdecimal() or not users.isdecimal():
        raise ConfigError(f"{text!r} is no SERVERS:USERS", where="--size", todo="for instance 16:1000")
    if not 1 <= args.time <= 1e5:
        raise ConfigError(f"must be from 1 to 100000, not {args.time:g}", where="--time")
    return Point(
        _within(int(servers), 1, _MOST_SERVERS, "--size"),
        _within(int(users), 1, _MOST_USERS, "--size"),
        context_tokens=_within(args.context, 1, 10**6, "--context"),
        duration_s=args.time,
    )


def _within(value: int, least: int, most: int, where: str) -> int:
    if not least <= value <= most:
        raise ConfigError(f"must be from {least} to {most}, not {value}", where=where)
    return value
