"""`pytest-kvcache render`: every command line and file that a run would use."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from pytest_kvcache import catalogue
from pytest_kvcache.engine.environment import inspect
from pytest_kvcache.render import render

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--kv-profile", required=True, metavar="NAME")
    parser.add_argument("--tier", required=True, metavar="NAME")
    parser.add_argument("--kv-config", type=Path, metavar="FILE", help="default: kvcache.toml of this folder")
    parser.add_argument("--kv-engine", type=Path, metavar="FOLDER", help="name its programs, not those of PATH")
    parser.add_argument("--json", action="store_true", help="for programs: components with argv, env and files")


def run(args: argparse.Namespace, say: Say) -> int:
    """Say what would be started; return the exit code.

    Raises:
        ConfigError: A flag or kvcache.toml is wrong.
    """
    known = catalogue.load(catalogue.find(Path.cwd(), args.kv_config))
    (tier,) = known.select([args.tier])
    engine = inspect(args.kv_engine) if args.kv_engine else None
    say(render(known.profile(args.kv_profile), tier, engine, os.environ, as_json=args.json))
    return 0
