"""Set up the engine, check a machine, show what a run would start, send a load, draw charts, and manage baselines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from keyword import iskeyword
from types import ModuleType

from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.showable import make_showable

#: Help of each subcommand. Each is a module of `commands` with `add_arguments` and `run`.
COMMANDS = {
    "setup": "make the CPU engine environment (once; reused while its lock is unchanged)",
    "doctor": "what would keep a run from working, or spoil its figures",
    "render": "print every command line and file that a run would use",
    "load": "run the workload alone, against an endpoint that is already there",
    "load-node": "an agent that sends a share of loads from this machine",
    "scale": "how a run grows with servers and users, measured and simulated on this machine",
    "report": "chart and table of runs that are over",
    "export": "results of runs as other tools read them",
    "import": "other tools' results as runs, to stand beside ours in reports",
    "history": "which run, commit and versions moved a cell",
    "bisect": "which release of vLLM or LMCache moved a cell, by halving",
    "baselines": "what is stored, what it can tell, what to do about it",
}


def module_of(name: str) -> ModuleType:
    """Return the module of a subcommand; that of a keyword (`import`) ends in an underscore; a hyphen becomes one."""
    module = name.replace("-", "_") + ("_" if iskeyword(name) else "")
    return import_module(f"pytest_kvcache.commands.{module}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand of `pytest-kvcache`; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        make_showable(stream)
    given = sys.argv[1:] if argv is None else argv
    try:  # importing a subcommand takes a second or more, in which it may be interrupted
        args = _parser(next(iter(given), "")).parse_args(given)
        return int(args.run(args, partial(print, flush=True)))
    except BrokenPipeError:  # the reader (`| head`) has left; on exit Python would flush stdout and complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (KvCacheError, OSError) as error:  # an OSError names its file: a folder that is read-only, a full disk
        print(f"pytest-kvcache: {error}", file=sys.stderr)
        return 1


def _parser(wanted: str) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of one subcommand only: importing the others' modules takes seconds."""
    parser = argparse.ArgumentParser(prog="pytest-kvcache", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what)
        if name == wanted:
            # A module cannot have the name of a keyword.
            module = module_of(name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
