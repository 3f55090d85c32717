"""Baseline files of older schemas: which can be carried over, and which are to be recorded anew."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_kvcache.baselines import migrate
from pytest_kvcache.baselines.files import Found
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import SCHEMA


def with_older(root: Path, found: Sequence[Found]) -> tuple[Found, ...]:
    """Return the found files, those of an older schema as carried over to the current one; nothing is written."""
    carried = {each.path: each.write.new for each in migrations(root, found) if each.write is not None}
    return tuple(replace(f, stored=carried[f.path], problem="", todo="") if f.path in carried else f for f in found)


@dataclass(frozen=True)
class Migration:
    """A file of another schema, and what is to be done about it.

    Args:
        path: The file.
        schema: The file's schema version.
        reason: Why the file cannot be carried over, "" where it can.
        command: Command that records the cell anew; "" where recording anew does not help.
        write: The write that carries the file over; None where it cannot be carried over.
    """

    path: Path
    schema: int
    reason: str = ""
    command: str = ""
    write: Write | None = None


def migrations(root: Path, found: Sequence[Found]) -> tuple[Migration, ...]:
    """Return what is to be done about each file of another schema; nothing is written.

    Schema 2 is carried over (`migrate`). Schema 1 held the figures of one run without its requests. They cannot be made
    into a boot of the current schema, so such a file is refused with the command that records the cell anew.
    """
    result = []
    for item in found:
        if item.schema is None or item.schema == SCHEMA:
            continue
        if item.schema > SCHEMA:
            result.append(Migration(item.path, item.schema, "a later pytest-kvcache wrote it: update", ""))
            continue
        reason = "it has the figures of one run and no boots"
        if item.schema == migrate.FROM:
            try:
                result.append(Migration(item.path, item.schema, write=migrate.carry_over(root, item.path)))
                continue
            except BaselineError as error:
                reason = error.what
        cell = item.cell
        argv = ["pytest", "-m", "perf"]
        argv += ["--tier", cell.tier, "--kv-profile", cell.profile] if cell else []
        result.append(Migration(item.path, item.schema, reason, shlex.join([*argv, "--update-baselines"])))
    return tuple(result)
