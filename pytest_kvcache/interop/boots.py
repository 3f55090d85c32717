"""Loads that runs have left, found in their folders and read as validated data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.load import table

#: Where a load's facts and its table of requests are, in its own folder.
RUN, ROWS = "run.json", "requests.parquet"
#: Below the folder of a session, or of several.
PATTERN = "*boot-*/context-*/run.json"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Imported(_Model):
    """Where an imported load comes from.

    Args:
        tool: Its format, as `--from` names it.
        file: Name of the file.
        sha256: Digest of the file (hex).
        version: What the file says of its version, "" where it says nothing.
    """

    tool: str
    file: str
    sha256: str
    version: str = ""


class _Load(_Model):
    started_at: float | None = None
    elapsed_s: float | None = None
    workers: int | None = None


class _Settings(_Model):
    model: str = ""
    context_tokens: int | None = None
    workload: dict[str, Any] = Field(default_factory=dict)


class _Session(_Model):
    profile: str = ""
    machine: str = ""
    commit: str = ""


class Facts(_Model):
    """What is read of a `run.json`; keys that are not used here may be there."""

    label: str
    comparability: dict[str, str]
    versions: dict[str, str] = Field(default_factory=dict)
    load: _Load = Field(default_factory=_Load)
    settings: _Settings = Field(default_factory=_Settings)
    commands: dict[str, list[str]] = Field(default_factory=dict)
    estimates: dict[str, float] = Field(default_factory=dict)
    faults: list[str]
    imported: Imported | None = None
    session: _Session = Field(default_factory=_Session)


@dataclass(frozen=True)
class LeftLoad:
    """One load of one boot, as its folder has it.

    Args:
        folder: Of the load.
        context_tokens: Length of the user context.
        facts: Of its run.json.
    """

    folder: Path
    context_tokens: int
    facts: Facts

    @property
    def run(self) -> str:
        """Name of the session's folder."""
        return _plain(self.folder.parts[-4]) if len(self.folder.parts) > 3 else ""

    @property
    def tier(self) -> str:
        """Name of the tier's folder."""
        return _plain(self.folder.parts[-3]) if len(self.folder.parts) > 2 else ""

    @property
    def boot(self) -> str:
        """Name of the boot's folder."""
        return _plain(self.folder.parts[-2])

    @property
    def name(self) -> str:
        """What tells the load from all others, for names of files."""
        return "-".join(each for each in (self.run, self.tier, self.boot, _plain(self.folder.name)) if each)

    def rows(self) -> pd.DataFrame:
        """Return the table of its requests.

        Raises:
            ResultsError: The file is missing or damaged, or of a newer version.
        """
        try:
            return table.read(self.folder / ROWS)
        except OSError as error:
            raise ResultsError(f"cannot be read: {error.strerror}", where=str(self.folder / ROWS)) from None


def find(
    runs: Iterable[Path], *, tiers: Collection[str] = (), contexts: Collection[int] = ()
) -> tuple[list[LeftLoad], list[str]]:
    """Return the loads of some runs that figures may rest on, and a line on each that is left out.

    Args:
        runs: Folders of sessions, or folders with several of them.
        tiers: Names of tiers; empty for all.
        contexts: Lengths of the user context; empty for all.

    Raises:
        ResultsError: There is none.
    """
    folders, found, left_out = list(runs), [], []
    known: dict[tuple[str, ...], Path] = {}
    cells: set[str] = set()
    for path in sorted({path.absolute() for folder in folders for path in folder.rglob(PATTERN)}):
        try:
            load = read(path)
        except ResultsError as error:
            left_out.append(str(error))
            continue
        cells.add(f"{load.tier}/{load.context_tokens}")
        if (tiers and load.tier not in tiers) or (contexts and load.context_tokens not in contexts):
            continue
        # Labels and names of files are made of these: a second load of the same ones would take the first one's place.
        first = known.setdefault(path.parts[-5:-1], path)
        if load.facts.faults:
            left_out.append(f"{path}: invalid: {load.facts.faults[0]}")
        elif first != path:
            left_out.append(f"{path}: has the run, tier, boot and context of {first}: rename its run's folder")
        else:
            found.append(load)
    if not found:
        what = "there is no valid load"
        what += f" of {' or '.join([*tiers, *map(str, contexts)])}" if tiers or contexts else ""
        raise ResultsError(
            what + (f": {'; '.join(left_out)}" if left_out else ""),
            where=", ".join(map(str, folders)),
            todo=f"there are {', '.join(sorted(cells))}" if cells else "name a folder of .kvcache/runs",
        )
    return found, left_out


def read(path: Path) -> LeftLoad:
    """Return the load whose facts are at `path`.

    Raises:
        ResultsError: The file cannot be read, or a key is missing or has a wrong value.
    """
    try:
        facts = Facts.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValidationError as error:
        raise ResultsError(why(error), where=str(path)) from None
    text = facts.comparability.get("workload.context_tokens", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ResultsError(
            f"comparability.workload.context_tokens: must be a whole number, not {text!r:.40}", where=str(path)
        )
    return LeftLoad(path.parent.absolute(), int(text), facts)


def why(error: ValidationError) -> str:
    """Return the first thing that is wrong with a file, in one line with its key."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return " ".join(f"{key + ': ' if key else ''}{first['msg']}".split())[:200]


def workload_kind(load: LeftLoad) -> str:
    """Return the kind of the workload, "" where the facts do not tell it."""
    kind = load.facts.settings.workload.get("kind", "")
    return kind if isinstance(kind, str) else ""


def _plain(name: str) -> str:
    """Return the name of a folder without bytes that are no text."""
    return name.encode("utf-8", "replace").decode()
