"""The lab's commands: `python -m lab.pnfs COMMAND`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lab.pnfs import build, doctor, host, netem, record, wrong
from lab.pnfs.folders import runs
from lab.pnfs.lab import LABEL, VARIABLE, Lab
from lab.pnfs.settings import LabSettings
from pytest_kvcache.errors import KvCacheError


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.pnfs", description=f"{__doc__} ({LABEL})")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in _COMMANDS.items():
        own = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        own.set_defaults(function=function)
        _ARGUMENTS.get(name, _none)(own)
    args = parser.parse_args(argv)
    try:
        return int(args.function(args))
    except KvCacheError as error:
        sys.stderr.write(f"pnfs-lab: {error}\n")
        return 2


def _build(args: argparse.Namespace) -> int:
    """Build kernel and root folder, where they are not there yet."""
    start = time.monotonic()
    built = build.ready(_say, keep_sources=args.keep_sources)
    _say(f"kernel {built.kernel}, root {built.root}: ready after {time.monotonic() - start:.1f} s")
    return 0


def _needs(args: argparse.Namespace) -> int:
    """Say what this host lacks, a line each; the exit code is 1 where it lacks something."""
    del args
    lines = host.lacking(build=True)
    for line in lines or ["nothing is lacking"]:
        _say(line)
    return bool(lines)


def _up(args: argparse.Namespace) -> int:
    """Bring a lab up, which stays until `down`."""
    start = time.monotonic()
    lab = Lab.up_detached(_settings(args), say=_say)
    _say(
        f"lab {lab.id} is up after {time.monotonic() - start:.1f} s: namespace {lab.namespace}, {', '.join(lab.mounts)}"
    )
    return 0


def _down(args: argparse.Namespace) -> int:
    """Take a lab down, and clean up after labs that were killed."""
    record.clean_up_after_the_dead(runs(), _say)
    there = record.living(runs())
    if args.lab is None and not there:
        _say("no lab is up")
        return 0
    for lab in [Lab(folder) for folder in there] if args.all else [Lab.attach(args.lab)]:
        lab.down()
        _say(f"lab {lab.id} is down")
    return 0


def _status(args: argparse.Namespace) -> int:
    """Say which labs are up, with their processes and mounts; the exit code is 1 where there is none."""
    del args
    there = record.living(runs())
    dead = [folder.name for folder in runs().glob("*") if folder.is_dir() and folder not in there]
    for name in dead:
        _say(f"lab {name}: killed; `down` or the next `up` removes what it left")
    for lab in map(Lab, there):
        keeper = record.keeper_of(record.read(lab.folder))
        _say(f"lab {lab.id}: up, keeper {keeper}, namespace {lab.namespace}, guest {lab.guest_address} ({LABEL})")
        for line in lab.guest.shell("grep ' - nfs' /proc/self/mountinfo || true").splitlines():
            _say(f"  {line}")
    if not there:
        _say("no lab is up")
    return not there


def _exec(args: argparse.Namespace) -> int:
    """Run a command in the guest."""
    process = Lab.attach(args.lab).exec(args.argv)
    try:
        code = process.wait(args.limit)
    except KeyboardInterrupt:
        process.stop()
        code = 130
    sys.stdout.write(process.log.read_text(encoding="utf-8", errors="replace") if process.log.exists() else "")
    return code


def _enter(args: argparse.Namespace) -> int:
    """Run a command of the host in the lab's network namespace, from which the guest can be reached."""
    lab = Lab.attach(args.lab)
    return subprocess.run(lab.inside(args.argv), env={**os.environ, VARIABLE: lab.id}, check=False).returncode


def _doctor(args: argparse.Namespace) -> int:
    """Prove a mount: `pytest-kvcache doctor` in the guest of a new lab, which is taken down again."""
    start = time.monotonic()
    with Lab.up(_settings(args), say=_say) as lab:
        _say(f"lab {lab.id} is up after {time.monotonic() - start:.1f} s ({LABEL})")
        return doctor.prove(lab, bench=args.bench, say=_say)


def _wrong(args: argparse.Namespace) -> int:
    """Arrange each wrong mount in new labs, and tell whether each is caught for its own reason."""
    up = partial(Lab.up, LabSettings(mounts=()), say=_say)
    return wrong.all_of_them(up, args.only, args.captures, _say)


def _netem(args: argparse.Namespace) -> int:
    """Show what `doctor --bench` makes of a slow or lossy storage link, in a new lab."""
    with Lab.up(LabSettings(), say=_say) as lab:
        return netem.all_of_them(lab, _say, bench=not args.no_bench)


def _settings(args: argparse.Namespace) -> LabSettings:
    return LabSettings(
        storage=args.storage,
        proto=args.proto,
        memory_mib=args.memory_mib,
        export_mib=args.export_mib,
        max_map_count=args.max_map_count,
    )


def _of_settings(parser: argparse.ArgumentParser) -> None:
    given = LabSettings()
    parser.add_argument("--storage", choices=("pnfs", "plain", "none"), default=given.storage)
    parser.add_argument("--proto", choices=("rdma", "tcp"), default=given.proto)
    parser.add_argument("--memory-mib", type=int, default=given.memory_mib)
    parser.add_argument("--export-mib", type=int, default=given.export_mib)
    parser.add_argument("--max-map-count", type=int, default=0, help="the host's vm.max_map_count while the lab is up")


def _of_doctor(parser: argparse.ArgumentParser) -> None:
    _of_settings(parser)
    parser.add_argument("--bench", action="store_true", help="time the mount through LMCache's adapter too")


def _of_lab(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lab", metavar="ID", help="default: the only one that is up")


def _of_down(parser: argparse.ArgumentParser) -> None:
    _of_lab(parser)
    parser.add_argument("--all", action="store_true", help="all labs of this user")


def _of_command(parser: argparse.ArgumentParser) -> None:
    _of_lab(parser)
    parser.add_argument(
        "--limit", type=float, default=3600.0, metavar="S", help="longest time for a command in the guest"
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")


def _of_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-sources", action="store_true", help="keep the kernel's sources and objects (2 GB)")


def _of_wrong(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="an arrangement, or `control`; repeatable"
    )
    parser.add_argument(
        "--captures", type=Path, metavar="FOLDER", help="write what was told, and the kernel's tables, there"
    )


def _of_netem(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-bench", action="store_true", help="leave LMCache's adapter out")


def _none(parser: argparse.ArgumentParser) -> None:
    del parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "needs": _needs,
    "build": _build,
    "up": _up,
    "exec": _exec,
    "enter": _enter,
    "status": _status,
    "down": _down,
    "doctor": _doctor,
    "wrong": _wrong,
    "netem": _netem,
}
_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "build": _of_build,
    "up": _of_settings,
    "exec": _of_command,
    "enter": _of_command,
    "down": _of_down,
    "doctor": _of_doctor,
    "wrong": _of_wrong,
    "netem": _of_netem,
}

if __name__ == "__main__":
    sys.exit(main())
