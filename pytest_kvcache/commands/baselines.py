"""`pytest-kvcache baselines …`: what is stored, what it can tell, what to do about it."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pytest_kvcache.baselines import files, store, update
from pytest_kvcache.baselines.files import Found
from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.errors import BaselineError, ConfigError
from pytest_kvcache.paths import argument
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.verdict.cells import SCHEMA, StoredCell, parse
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import JUDGED

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.add_argument(
        "--kv-baselines", metavar="DIR", help="default: as for pytest (ini key kv_baselines, baselines)"
    )
    add_project_arguments(parser)
    what = parser.add_subparsers(required=True, metavar="WHAT")

    each = what.add_parser("list", help="every baseline: boots, dates, what it can tell, what is wrong with it")
    each.set_defaults(what=_list)

    show = what.add_parser("show", help="one baseline: intervals, boots, keys")
    show.add_argument(
        "cell", metavar="PROFILE/TIER/CONTEXT", help="with /MACHINE/ after the profile where several have it"
    )
    show.set_defaults(what=_show)

    diff = what.add_parser("diff", help="what changed against another revision or folder")
    diff.add_argument("other", type=_other, metavar="REVISION|DIR", nargs="?", default="HEAD", help="default: HEAD")
    diff.set_defaults(what=_diff)

    prune = what.add_parser("prune", help="remove leftovers, and cells of profiles, tiers or contexts that are no more")
    prune.add_argument("--yes", action="store_true", help="remove; without it they are listed only")
    prune.set_defaults(what=_prune)

    migrate = what.add_parser("migrate", help="carry files of an older schema over, or say what helps")
    migrate.add_argument("--yes", action="store_true", help="write; without it they are listed only")
    migrate.set_defaults(what=_migrate)


def run(args: argparse.Namespace, say: Say) -> int:
    """Do what was asked for; return the exit code.

    Raises:
        BaselineError: There is no such cell or folder.
        ConfigError: A flag or the project's configuration is wrong.
    """
    args.located = located(args)
    args.kv_baselines = args.located.baselines
    return int(args.what(args, say))


def _list(args: argparse.Namespace, say: Say) -> int:
    found = files.scan(args.kv_baselines)
    say(_text(files.list_table(found)) if found else "no baselines")
    return 1 if any(f.problem for f in found) else 0


def _show(args: argparse.Namespace, say: Say) -> int:
    found = files.scan(args.kv_baselines)
    cells = files.readable(found)
    chosen = [c for c in cells if args.cell in {str(c.address), _long(c)}]
    if len(chosen) != 1:
        known = ", ".join(_long(c) for c in (chosen or cells)) or "none"
        what = "is there on several machines" if chosen else "is not there"
        raise BaselineError(f"{args.cell} {what}; known: {known}", where=str(args.kv_baselines))
    rules, family = _rules(args, chosen[0])
    shown = files.show(chosen[0], cells, family=family, policy=rules)
    say(f"{_long(chosen[0])}: {shown.label}")
    for table in (shown.levels, shown.boots, shown.keys):
        say("")
        say(_text(table))
    return 0


def _diff(args: argparse.Namespace, say: Say) -> int:
    now = {c.address: c for c in files.readable(files.scan(args.kv_baselines))}
    other = Path(args.other)
    if other.is_dir():
        before = {c.address: c for c in files.readable(files.scan(other))}
    else:
        before = {c.address: c for c in _at_revision(args.kv_baselines, args.other)}
    changed = 0
    for address in sorted({*now, *before}, key=str):
        old, new = before.get(address), now.get(address)
        if old is None or new is None:
            say(f"{address} on {address.machine}: {'new' if old is None else 'gone'}")
            changed += 1
        elif old != new:
            changed += 1
            found = update.diff(old, new)
            say(f"{address} on {address.machine}: {len(old.boots)} -> {len(new.boots)} boots")
            for line in (*found.comparability, *found.versions):
                say(f"  {line}")
            say(_text(found.table()))
    say(f"{changed} of {len({*now, *before})} cells differ from {args.other}")
    return 0


def _other(text: str) -> str:
    """Return a revision as it is, and a folder in the home as it is called."""
    return str(argument(text)) if text.startswith(("~", "$")) else text


def _at_revision(root: Path, revision: str) -> list[StoredCell]:
    """Return the baselines below `root` as git has them at a revision."""
    top = ["git", "-C", str(root)]
    listed = subprocess.run(
        [*top, "ls-tree", "-r", "--name-only", revision, "."],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if listed.returncode != 0:
        raise BaselineError(f"git has no revision {revision!r} here: {listed.stderr.strip()[:200]}", where=str(root))
    cells = []
    for name in listed.stdout.splitlines():
        if name.endswith(".json"):
            text = subprocess.run([*top, "show", f"{revision}:./{name}"], capture_output=True, check=True).stdout
            cells.append(parse(text, where=f"{revision}:{name}"))
    return cells


def _prune(args: argparse.Namespace, say: Say) -> int:
    known = catalogue.load(args.located.config)
    found = files.scan(args.kv_baselines)
    drop = [f.cell for f in found if f.cell is not None and not _is_used(f, known)]
    paths = files.removable(args.kv_baselines, drop)
    say(f"configuration: {args.located.config or 'built in'}; baselines: {args.kv_baselines}")
    for path in paths:
        say(str(path))
    if args.yes:
        files.prune(args.kv_baselines, paths)
    say(f"{len(paths)} files {'removed' if args.yes else 'would be removed: --yes removes them'}")
    return 0


def _is_used(found: Found, known: catalogue.Catalogue) -> bool:
    """Whether the configuration still has the cell's profile, tier and context."""
    if found.cell is None:
        return True
    profile = known.profiles.get(found.cell.profile)
    contexts = profile.workload.context_tokens if profile else ()
    return found.cell.tier in known.tiers and found.cell.context_tokens in contexts


def _migrate(args: argparse.Namespace, say: Say) -> int:
    todo = files.migrations(args.kv_baselines, files.scan(args.kv_baselines))
    writes = [each.write for each in todo if each.write is not None]
    for each in todo:
        say(f"{each.path}: schema {each.schema}: {each.reason or f'is carried over to {SCHEMA}'}")
        if each.command:
            say(f"  -> {each.command}")
    if args.yes:
        store.write_all(args.kv_baselines, writes)
    left = len(todo) - len(writes)
    done = "carried over" if args.yes else "can be carried over: --yes writes them"
    say(f"{len(todo)} files of another schema: {len(writes)} {done}; {left} cannot be")
    return 1 if left or (writes and not args.yes) else 0


def _rules(args: argparse.Namespace, stored: StoredCell) -> tuple[Policy, int]:
    """Return the rules of the cell's profile and the number of its gates, the default ones where it is no more."""
    known = catalogue.load(args.located.config)
    try:
        profile = known.profile(stored.cell.profile)
    except ConfigError:
        return Policy(), len(JUDGED)
    return profile.rules.policy(), len(known.tiers) * len(profile.workload.context_tokens) * len(JUDGED)


def _long(stored: StoredCell) -> str:
    cell = stored.cell
    return f"{cell.profile}/{cell.machine}/{cell.tier}/{cell.context_tokens}"


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False)
