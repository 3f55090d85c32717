"""`pytest-kvcache baselines`: lists, shows, compares, prunes and migrates stored baselines."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pytest_kvcache.baselines import files, older, revision, store, tables, update
from pytest_kvcache.baselines.files import Found
from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.errors import BaselineError, ConfigError
from pytest_kvcache.paths import argument
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.verdict.cells import SCHEMA, Cell, StoredCell, requests_path
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS

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
    """Carry out the subcommand of `baselines`; return the exit code.

    Raises:
        BaselineError: There is no such cell or folder.
        ConfigError: A flag or the project's configuration is wrong.
    """
    args.located = located(args)
    args.kv_baselines = args.located.baselines
    return int(args.what(args, say))


def _list(args: argparse.Namespace, say: Say) -> int:
    found = files.scan(args.kv_baselines)
    problems = tables.problems(found)
    known = catalogue.load(args.located.config)
    table = files.list_table(found, lambda stored: _rules(known, stored), tables=problems)
    # Profiles and machines have long names, which in each line would leave no room for the rest.
    for (profile, machine), own in table.groupby(["profile", "machine"], sort=False):
        say(f"{profile} on {machine}:\n{_text(own.drop(columns=['profile', 'machine']))}\n")
    if not found:
        say("no baselines")
    return 1 if problems or any(f.problem for f in found) else 0


def _show(args: argparse.Namespace, say: Say) -> int:
    found = files.scan(args.kv_baselines)
    named = {f.cell: f for f in found if f.cell is not None}
    chosen = [cell for cell in named if args.cell in {str(cell), _long(cell)}]
    if len(chosen) != 1:
        known = ", ".join(_long(cell) for cell in (chosen or named)) or "none"
        what = "is there on several machines" if chosen else "is not there"
        raise BaselineError(f"{args.cell} {what}; known: {known}", where=str(args.kv_baselines))
    item = named[chosen[0]]
    if item.stored is None:
        raise BaselineError(item.problem, where=str(item.path), todo=item.todo)
    rules, family = _rules(catalogue.load(args.located.config), item.stored)
    shown = files.show(item.stored, files.readable(found), family=family, policy=rules)
    say(f"{_long(chosen[0])}: {shown.label}")
    for table in (shown.levels, shown.boots, shown.keys):
        say("")
        say(_text(table))
    return 0


def _diff(args: argparse.Namespace, say: Say) -> int:
    """Say what changed; return 1 where a file could not be compared, since nobody knows whether it changed."""
    args.other = _other(args.other)
    other = Path(args.other)
    now = _by_cell(args.kv_baselines)
    if other.is_dir():
        before = _by_cell(other)
    else:
        with tempfile.TemporaryDirectory(prefix="kvc-baselines-") as folder:
            revision.export(args.kv_baselines, args.other, Path(folder))
            before = _by_cell(Path(folder))
    changed = unread = 0
    for cell in sorted({*now, *before}, key=_long):
        old, new = before.get(cell), now.get(cell)
        at = f"{cell} on {cell.machine}"
        problems = [
            f"{at}: {when}: {each.problem}" for when, each in ((args.other, old), ("now", new)) if each and each.problem
        ]
        unread += bool(problems)
        lines = problems
        if old is None or new is None:
            lines = [f"{at}: {'new' if old is None else 'gone'}", *problems]
        elif old.stored is not None and new.stored is not None:
            lines = _changes(at, old.stored, new.stored)
        changed += bool(lines)
        for line in lines:
            say(line)
    say(f"{changed} of {len({*now, *before})} cells differ from {args.other}" + _count(unread))
    return 1 if unread else 0


def _count(unread: int) -> str:
    return f" or cannot be compared ({unread})" if unread else ""


def _changes(at: str, old: StoredCell, new: StoredCell) -> list[str]:
    """Return lines on what changed in a cell that both sides have; no lines where nothing changed."""
    if old.text() == new.text():  # texts, since a stored file has fewer digits than one that was just carried over
        return []
    found = update.diff(old, new)
    lines = [f"{at}: {len(old.boots)} -> {len(new.boots)} boots"]
    return [*lines, *(f"  {line}" for line in (*found.comparability, *found.versions)), _text(found.table())]


def _by_cell(root: Path) -> dict[Cell, Found]:
    """Return the files below a folder by cell, those of an older schema as carried over to the current one."""
    return {each.cell: each for each in older.with_older(root, files.scan(root)) if each.cell is not None}


def _other(text: str) -> str:
    """Return a revision unchanged, and a path that begins with `~` or `$` expanded."""
    return str(argument(text)) if text.startswith(("~", "$")) else text


def _prune(args: argparse.Namespace, say: Say) -> int:
    known = catalogue.load(args.located.config)
    found = files.scan(args.kv_baselines)
    drop = {f.cell: why for f in found if f.cell is not None and (why := _no_more(f.cell, known))}
    paths = files.removable(args.kv_baselines, list(drop))
    of_cells = {cell.path(args.kv_baselines): why for cell, why in drop.items()}
    whys = of_cells | {requests_path(path): why for path, why in of_cells.items()}
    say(f"configuration: {args.located.config or 'built in'}; baselines: {args.kv_baselines}")
    for path in paths:
        say(f"{path}: {whys.get(path, 'belongs to no baseline')}")
    if args.yes:
        files.prune(args.kv_baselines, paths)
    say(f"{len(paths)} files {'removed' if args.yes else 'would be removed: --yes removes them'}")
    return 0


def _no_more(cell: Cell, known: catalogue.Catalogue) -> str:
    """Return what of the cell the configuration has no more, "" where it has all."""
    profile = known.profiles.get(cell.profile)
    if profile is None:
        return f"there is no profile {cell.profile}"
    if cell.tier not in known.tiers:
        return f"there is no tier {cell.tier}; keep it if a test brings this tier itself"
    if cell.context_tokens not in profile.workload.context_tokens:
        return f"no context of profile {cell.profile}; keep it if a test brings this length itself"
    return ""


def _migrate(args: argparse.Namespace, say: Say) -> int:
    todo = older.migrations(args.kv_baselines, files.scan(args.kv_baselines))
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


def _rules(known: catalogue.Catalogue, stored: StoredCell) -> tuple[Policy, int]:
    """Return rules and number of gates of the cell's profile, or the defaults where the profile is gone."""
    try:
        profile = known.profile(stored.cell.profile)
    except ConfigError:
        return Policy(), len(DEFAULT_METRICS)
    return profile.policy, known.declared_gates(profile)


def _long(cell: Cell) -> str:
    return f"{cell.profile}/{cell.machine}/{cell.tier}/{cell.context_tokens}"


def _text(table: pd.DataFrame) -> str:
    """Return a table for the terminal, whose last column, the longest, begins at the left."""
    if table.empty:
        return table.to_string(index=False)
    others, last = table.iloc[:, :-1].to_string(index=False).splitlines(), table.iloc[:, -1].astype(str)
    return "\n".join(f"{line} {text}" for line, text in zip(others, (last.name, *last), strict=True))
