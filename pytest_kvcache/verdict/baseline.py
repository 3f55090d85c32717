"""Stored cells: one JSON file for each profile, machine, tier and context, made to be read in a diff."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_kvcache.errors import BaselineError

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """What a baseline is kept for.

    Args:
        profile: Name of the profile.
        machine: Short name of the hardware.
        tier: Name of the tier.
        context_tokens: Length of the user context.
    """

    profile: str
    machine: str
    tier: str
    context_tokens: int

    def __str__(self) -> str:
        return f"{self.profile}/{self.tier}/{self.context_tokens}"

    def path(self, root: Path) -> Path:
        """Return the cell's file below `root`."""
        return root / self.profile / self.machine / self.tier / f"context-{self.context_tokens}.json"


class Baseline(BaseModel):
    """The content of a cell's file.

    Args:
        schema_version: Of this layout.
        label: The tier's name as outputs had it, with what stood in for what.
        run_id: The run that it was taken from.
        recorded: Date of that run (UTC).
        comparability: Keys that must be equal for a comparison to mean anything.
        versions: Of what is being tested; recorded, and free to change.
        estimates: The figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA
    label: str
    run_id: str
    recorded: str
    comparability: dict[str, str]
    versions: dict[str, str]
    estimates: dict[str, float]


@dataclass(frozen=True)
class Write:
    """A baseline that is to be written.

    Args:
        cell: Where it belongs.
        new: What is to stand there.
        old: What stands there now.
    """

    cell: Cell
    new: Baseline
    old: Baseline | None = field(default=None)


def read(path: Path) -> Baseline | None:
    """Return the baseline at `path`, None where there is no file.

    Raises:
        BaselineError: The file is not a baseline of this schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"cannot be read: {error}", where=str(path)) from error
    try:
        baseline = Baseline.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise BaselineError(
            f"is not a baseline: {key}: {first['msg']}",
            where=str(path),
            todo="restore it from version control, or record it anew with --update-baselines",
        ) from None
    if baseline.schema_version != SCHEMA:
        raise BaselineError(
            f"has schema {baseline.schema_version}, this version reads {SCHEMA}",
            where=str(path),
            todo="record it anew with --update-baselines",
        )
    return baseline


def write_all(root: Path, writes: Iterable[Write]) -> list[Path]:
    """Write baselines, each file whole or not at all; return their paths.

    Raises:
        BaselineError: A file cannot be written; those before it are.
    """
    paths = []
    for write in writes:
        path = write.cell.path(root)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, write.new)
        except OSError as error:
            raise BaselineError(f"cannot be written: {error}", where=str(path)) from error
        paths.append(path)
    return paths


def elsewhere(root: Path, cell: Cell) -> Mapping[str, Path]:
    """Return the files of the same cell on other machines, by machine."""
    pattern = f"*/{cell.tier}/context-{cell.context_tokens}.json"
    found = (root / cell.profile).glob(pattern)
    return {path.parts[-3]: path for path in sorted(found) if path.parts[-3] != cell.machine}


def _replace(path: Path, baseline: Baseline) -> None:
    rounded = {key: float(f"{value:.6g}") for key, value in baseline.estimates.items()}
    data = baseline.model_copy(update={"estimates": rounded}).model_dump()
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
