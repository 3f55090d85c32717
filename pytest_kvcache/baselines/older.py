"""Baseline files of older schemas: what can be carried over, and what is to be recorded anew."""

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
    """Return what was found, with files of an older schema as they would be carried over; nothing is written."""
    carried = {each.path: each.write.new for each in migrations(root, found) if each.write is not None}
    return tuple(replace(f, stored=carried[f.path], problem="", todo="") if f.path in carried else f for f in found)


@dataclass(frozen=True)
class Migration:
    """A file of another schema.

    Args:
        path: Which.
        schema: Its version.
        reason: Why it cannot be carried over, "" where it can.
        command: What records it anew; "" where that is not what helps.
        write: It as it is to be, where it can be carried over.
    """

    path: Path
    schema: int
    reason: str = ""
    command: str = ""
    write: Write | None = None


def migrations(root: Path, found: Sequence[Found]) -> tuple[Migration, ...]:
    """Return what is to be done about each file of another schema; nothing is written.

    Schema 2 is carried over (`migrate`). Schema 1 held the figures of one run, without its requests: it is no boot of
    this schema and cannot be made into one, so it is refused with the command that records the cell anew.
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
