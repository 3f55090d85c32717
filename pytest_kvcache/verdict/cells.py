"""Baseline files, schema 3: what a cell keeps, as validated data.

A cell is two files: `PROFILE/MACHINE/TIER/context-N.json`, made to be read in a diff, and beside it
`context-N.requests.parquet`, the requests of every boot, whose SHA-256 the first one names. This module says what
stands in them and checks it; `shelf.py` and `store.py` find, read and write them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.interim import effective_days
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric
from pytest_kvcache.verdict.token_account import TokenAccount

SCHEMA = 3
#: Longest JSON file that is read. Six boots take about 6 kB.
MAX_JSON_BYTES = 1 << 20
RECORD_ANEW = "restore it from version control, or record it anew with --update-baselines"
MIGRATE = "`pytest-kvcache baselines migrate` carries it over, or says what records it anew (--update-baselines)"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")
_DIGITS = 6
_NAME_TODO = "use letters, digits and . _ + -"
#: Bounds of what is judged: a request of a nanosecond, or one that takes thirty years.
_LEAST, _MOST = 1e-9, 1e9


def _names_a_folder(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.120} cannot name a folder of baselines; {_NAME_TODO}")
    return name


#: A name that may stand in the path of a baseline.
FolderName = Annotated[str, AfterValidator(_names_a_folder)]
Text = Annotated[str, StringConstraints(max_length=4000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Date = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
#: Beyond these bounds no figure of a run can lie (seconds, bytes, tokens a second), and sums of squares overflow.
Number = Annotated[float, Field(ge=-1e18, le=1e18, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False)]
#: Seconds of a round of all users.
RoundSeconds = Annotated[float, Field(ge=1e-3, le=1e7, allow_inf_nan=False)]


class BaselineModel(BaseModel):
    """Base of what stands in a baseline file, which is JSON: of each value the type is given, and none is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Cell:
    """What a baseline is kept for.

    Args:
        profile: Name of the profile.
        machine: Short name of the hardware.
        tier: Name of the tier.
        context_tokens: Length of the user context.

    Raises:
        BaselineError: A name cannot be that of a folder: it is empty, too long, or has other characters than letters,
            digits and `._+-`, so that no name leads out of the baselines' folder.
    """

    profile: str
    machine: str
    tier: str
    context_tokens: int

    def __post_init__(self) -> None:
        """Check the names."""
        for what in ("profile", "machine", "tier"):
            name = getattr(self, what)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise BaselineError(f"{what} {name!r:.120} cannot name a folder", todo=_NAME_TODO)
        if type(self.context_tokens) is not int or not 0 < self.context_tokens < 10**9:
            raise BaselineError(f"a context of {self.context_tokens!r:.40} tokens cannot name a file")

    def __str__(self) -> str:
        return f"{self.profile}/{self.tier}/{self.context_tokens}"

    def path(self, root: Path) -> Path:
        """Return the cell's JSON file below `root`."""
        return root / self.profile / self.machine / self.tier / f"context-{self.context_tokens}.json"


def requests_path(path: Path) -> Path:
    """Return where the requests of the cell at `path` (its JSON file) are."""
    return path.with_suffix(".requests.parquet")


class StoredBoot(BaselineModel):
    """One boot of a baseline.

    Args:
        run_id: The session that it was taken in.
        recorded: Date (UTC), YYYY-MM-DD.
        figures: Estimates in natural units by name, unit last. Of `DEFAULT_METRICS` some are there, and those between
            1e-9 and 1e9.
        canary: Readings around the boot, in seconds, by name.
        account: Where its tokens came from; None where nothing counted them.
    """

    run_id: Key
    recorded: Date
    figures: Annotated[dict[Key, Number], Field(max_length=200)]
    canary: Annotated[dict[Key, Positive], Field(max_length=50)] = Field(default_factory=dict)
    account: TokenAccount | None = None

    @field_validator("figures")
    @classmethod
    def _judged_are_sound(cls, figures: dict[str, float]) -> dict[str, float]:
        if not any(metric.key in figures for metric in DEFAULT_METRICS):
            raise ValueError(f"none of {', '.join(metric.key for metric in DEFAULT_METRICS)} is there")
        for metric in DEFAULT_METRICS:
            if metric.key in figures and not _LEAST <= figures[metric.key] <= _MOST:
                raise ValueError(f"{metric.key} is not between {_LEAST:g} and {_MOST:g}")
        return figures


class RequestsFile(BaselineModel):
    """The table of requests beside the file.

    Args:
        sha256: Of the whole file.
        rows: How many requests, of all boots.
    """

    sha256: Digest
    rows: Annotated[int, Field(ge=0, le=1_000_000)]


class CellName(BaselineModel):
    """The cell that a file says it is of: a file that was moved to another place is not that place's baseline.

    Args:
        profile: As in `Cell`.
        machine: As in `Cell`.
        tier: As in `Cell`.
        context_tokens: As in `Cell`.
    """

    profile: Key
    machine: Key
    tier: Key
    context_tokens: Annotated[int, Field(gt=0, lt=10**9)]


class StoredCell(BaselineModel):
    """The content of a cell's JSON file.

    Args:
        schema_version: Of this layout.
        cell: Which.
        label: The tier's name as outputs had it, with what stood in for what.
        comparability: Keys that must be equal for a comparison to mean anything.
        versions: Of what is being tested; recorded, and free to change.
        workload: Hash of the requests that were to be sent (`environment.workload_hash`).
        round_s: Seconds of one round of all users; None where the workload has no rounds.
        boots: The replicates, in the order of recording, which nothing depends on.
        requests: Of the file beside it; None where there is none.
    """

    schema_version: Literal[3] = 3
    cell: CellName
    label: Text
    comparability: Annotated[dict[Key, Text], Field(max_length=500)]
    versions: Annotated[dict[Key, Text], Field(max_length=500)]
    workload: Digest
    round_s: RoundSeconds | None = None
    boots: Annotated[tuple[StoredBoot, ...], Field(min_length=1, max_length=500)]
    requests: RequestsFile | None = None

    def unmeasured(self, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        """Return those of these metrics that not every boot of the baseline has."""
        return tuple(m for m in metrics if not all(m.measured(boot.figures) for boot in self.boots))

    def days(self, more: int = 0) -> float:
        """Return over how many sessions the boots were taken (`effective_days`), and `more`, each of its own."""
        return effective_days([*Counter(boot.run_id for boot in self.boots).values(), *[1] * more])

    @property
    def address(self) -> Cell:
        """The cell, as an address of files."""
        return Cell(**self.cell.model_dump())

    def text(self) -> str:
        """Return the JSON text: keys sorted, numbers of six digits, so that a diff shows what changed and no more."""
        data = self.model_dump(mode="json")
        for boot in data["boots"]:
            for group in ("figures", "canary"):
                boot[group] = {key: _rounded(value) for key, value in boot[group].items()}
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def name_of(cell: Cell) -> CellName:
    """Return a cell's address as data."""
    return CellName(profile=cell.profile, machine=cell.machine, tier=cell.tier, context_tokens=cell.context_tokens)


def parse(text: bytes, *, where: str) -> StoredCell:
    """Return the cell that JSON text holds.

    Args:
        text: The whole file.
        where: Its name, for errors.

    Raises:
        BaselineError: It is not JSON, has a key twice, holds NaN or Infinity, nests too deeply, or is no cell of schema
            3; for other schemas the error names the command that helps.
    """
    data = parse_json(text, where=where)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is int and version != SCHEMA:
        raise BaselineError(
            f"has schema {version}, this version reads {SCHEMA}",
            where=where,
            todo=MIGRATE if version < SCHEMA else "update pytest-kvcache: a later version wrote it",
        )
    return validated(data, where=where)


def validated(data: object, *, where: str) -> StoredCell:
    """Return the cell that parsed JSON holds; raises BaselineError where it is none of this schema."""
    try:
        # strict for JSON: a tuple is an array there, and 3 is a float too
        return StoredCell.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise BaselineError(
            f"is not a baseline: {key:.200}: {first['msg']:.200}", where=where, todo=RECORD_ANEW
        ) from None
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"is not a baseline: {error!s:.200}", where=where, todo=RECORD_ANEW) from None


def parse_json(text: bytes, *, where: str) -> Any:
    """Return what JSON text holds, refusing what Python's reader would let pass.

    Args:
        text: The whole file.
        where: Its name, for errors.

    Raises:
        BaselineError: It is too long, not UTF-8 or JSON, has a key twice, NaN or Infinity, or nests too deeply.
    """
    if len(text) > MAX_JSON_BYTES:
        raise BaselineError(f"is not a baseline: longer than {MAX_JSON_BYTES} bytes", where=where, todo=RECORD_ANEW)
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.200}"
        raise BaselineError(f"is not a baseline: {why}", where=where, todo=RECORD_ANEW) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r:.80} is there twice")
    return result


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
