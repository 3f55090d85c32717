"""All baselines below a folder, for the subcommands of `pytest-kvcache baselines`.

Nothing here prints. Tables are data frames of text, ready for `to_string(index=False)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pytest_kvcache.baselines.store import read_bytes
from pytest_kvcache.baselines.update import MetricLevel, levels
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import (
    MAX_JSON_BYTES,
    RECORD_ANEW,
    SCHEMA,
    Cell,
    StoredCell,
    parse,
    parse_json,
    requests_path,
)
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import tier_of

_PREFIX, _SUFFIX = "context-", ".json"
_NO_FOLDER = "record baselines with `pytest -m perf --record-baselines`, or name their folder with --kv-baselines"


@dataclass(frozen=True)
class Found:
    """A file that is, or should be, a baseline.

    Args:
        path: The JSON file.
        cell: The cell that the file's path names; None where the path names no cell.
        stored: The file's content; None where it cannot be read.
        schema: The file's schema version; None where not even the version can be read.
        problem: Why the file cannot be read, "" where it can.
        todo: What to do about the problem, "" where there is none.
    """

    path: Path
    cell: Cell | None
    stored: StoredCell | None = None
    schema: int | None = None
    problem: str = ""
    todo: str = ""


def scan(root: Path) -> tuple[Found, ...]:
    """Return every baseline file below `root`, damaged ones too, in the order of their cells.

    Raises:
        BaselineError: `root` is not a folder.
    """
    if not root.is_dir():
        raise BaselineError("is not a folder", where=str(root), todo=_NO_FOLDER)
    found = [_look(path, root) for path in root.glob(f"*/*/*/*{_SUFFIX}") if not path.name.startswith(".")]
    return tuple(sorted(found, key=_order))


def readable(found: Sequence[Found]) -> tuple[StoredCell, ...]:
    """Return the stored cells of the files that could be read."""
    return tuple(f.stored for f in found if f.stored is not None)


def list_table(
    found: Sequence[Found],
    rules: Callable[[StoredCell], tuple[Policy, int]],
    *,
    tables: Mapping[Path, str] | None = None,
) -> pd.DataFrame:
    """Return one line for each file: cell, boots, sessions, dates, margin of each metric, what is wrong with it.

    Args:
        found: The files, from `scan`.
        rules: Returns the rules of a cell's verdicts, and the number of declared gates, on which margins depend.
        tables: Problems of the tables of requests, from `tables.problems`.
    """
    cells = readable(found)
    lines = []
    for item in found:
        place = item.path.parts[-4:]
        line = dict(zip(("profile", "machine", "tier"), place, strict=False))
        line |= {"context": place[-1].removeprefix(_PREFIX).removesuffix(_SUFFIX)}
        stored = item.stored
        if stored is None:
            lines.append(line | {"boots": "-", "sessions": "-", "recorded": "-", "margin": "-", "state": item.problem})
            continue
        policy, family = rules(stored)
        known = levels(tier_of(stored, cells), family=family, policy=policy)
        dates = sorted(boot.recorded for boot in stored.boots)
        lines.append(
            line
            | {
                "boots": str(len(stored.boots)),
                "sessions": str(len({boot.run_id for boot in stored.boots})),
                "recorded": dates[0] if dates[0] == dates[-1] else f"{dates[0]} … {dates[-1]}",
                "margin": ", ".join(f"{level.metric.short} {level.words()['margin']}" for level in known) or "-",
                "state": (tables or {}).get(item.path) or _state(stored, known, policy),
            }
        )
    columns = ["profile", "machine", "tier", "context", "boots", "sessions", "recorded", "margin", "state"]
    return pd.DataFrame(lines, columns=columns)


def _state(stored: StoredCell, known: Sequence[MetricLevel], policy: Policy) -> str:
    if len(stored.boots) < policy.least_boots:
        return f"too small: gates need {policy.least_boots} boots"
    wide = [
        f"{level.metric.short} may pass at {policy.widest_margin_of(level.metric.key):+.0%} at most"
        for level in known
        if level.too_wide
    ]
    return f"spreads too far: {', '.join(wide)}" if wide else "ok"


@dataclass(frozen=True)
class Shown:
    """All that is known of a cell.

    Args:
        cell: The cell.
        label: The tier's name in outputs.
        levels: One line for each metric: mean, 95 % interval, standard deviation of a boot, margin.
        boots: One line for each boot: session, date, judged figures, canary readings.
        keys: One line for each comparability key or version: `kind`, `key`, `value`.
    """

    cell: Cell
    label: str
    levels: pd.DataFrame
    boots: pd.DataFrame
    keys: pd.DataFrame


def show(
    stored: StoredCell, siblings: Sequence[StoredCell] = (), *, family: int, policy: Policy | None = None
) -> Shown:
    """Return what is known of a cell.

    Args:
        stored: The cell's baseline.
        siblings: Baselines of the tier's other contexts, over which the spread is pooled.
        family: Number of declared gates.
        policy: The rules of verdicts; None takes the default rules.
    """
    rows = [
        {
            "metric": level.metric.label,
            "mean": f"{level.mean:.4g}",
            **level.words(),
        }
        for level in levels(tier_of(stored, siblings), family=family, policy=policy)
    ]
    metrics = policy.metrics if policy else DEFAULT_METRICS
    boots = [
        {"session": boot.run_id, "recorded": boot.recorded}
        | {m.label: f"{boot.figures[m.key]:.4g}" for m in metrics if m.key in boot.figures}
        | {f"canary {name}": f"{value:.4g}" for name, value in sorted(boot.canary.items())}
        for boot in stored.boots
    ]
    keys = [("must be equal", k, v) for k, v in sorted(stored.comparability.items())]
    keys += [("must be equal", "workload hash", stored.workload)]
    keys += [("recorded", k, v) for k, v in sorted(stored.versions.items())]
    return Shown(
        stored.address,
        stored.label,
        pd.DataFrame(rows),
        pd.DataFrame(boots).fillna("-"),
        pd.DataFrame(keys, columns=["kind", "key", "value"]),
    )


def unused(found: Sequence[Found], used: Collection[Cell]) -> tuple[Found, ...]:
    """Return the baselines that a full run did not use, among those of the run's profiles and machines."""
    had = {(cell.profile, cell.machine) for cell in used}
    return tuple(f for f in found if f.cell and f.cell not in used and (f.cell.profile, f.cell.machine) in had)


def elsewhere(found: Sequence[Found], cell: Cell) -> list[str]:
    """Return the other machines that have a baseline of the cell's profile, tier and context."""

    def place(each: Cell) -> tuple[str, str, int]:
        return each.profile, each.tier, each.context_tokens

    cells = [f.cell for f in found if f.cell is not None and place(f.cell) == place(cell)]
    return sorted({each.machine for each in cells} - {cell.machine})


def removable(root: Path, drop: Collection[Cell] = ()) -> tuple[Path, ...]:
    """Return the files that `prune` would remove: the files of cells in `drop`, and files that belong to no cell.

    Files of no cell are tables of requests whose JSON file is gone and temporary files of a killed session. Damaged
    baselines are not removed: a person decides about those. Links are never followed or removed.
    """
    wanted = {path for cell in drop for path in (cell.path(root), requests_path(cell.path(root)))}
    for path in root.glob("*/*/*/*"):
        orphan = path.name.endswith(".requests.parquet") and not _json_of(path).exists()
        left = path.name.startswith(f".{_PREFIX}")
        if orphan or left:
            wanted.add(path)
    return tuple(sorted(path for path in wanted if path.is_file() and not path.is_symlink()))


def prune(root: Path, paths: Sequence[Path]) -> None:
    """Remove files that `removable` returned, and folders below `root` that are empty afterwards.

    Raises:
        BaselineError: A file is not below `root`, or cannot be removed.
    """
    base = root.resolve()
    for path in paths:
        if not path.parent.resolve().is_relative_to(base):
            raise BaselineError("is not below the baselines' folder", where=str(path))
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BaselineError(f"cannot be removed: {error}", where=str(path)) from error
    folders = {folder for path in paths for folder in path.parents if folder != root and root in folder.parents}
    for folder in sorted(folders, key=lambda f: len(f.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _look(path: Path, root: Path) -> Found:
    cell = _cell_at(path)
    schema = None
    try:
        data = read_bytes(path, root=root, limit=MAX_JSON_BYTES)
    except BaselineError as error:
        return Found(path, cell, problem=error.what, todo=error.todo)
    if data is None:
        return Found(path, cell, problem="is gone", todo=RECORD_ANEW)
    try:
        schema = _schema(parse_json(data, where=str(path)))
        stored = parse(data, where=str(path))
    except BaselineError as error:
        is_damaged = schema in {None, SCHEMA}
        problem = f"is damaged: it {error.what}" if is_damaged else error.what
        return Found(path, cell, schema=schema, problem=problem, todo=error.todo)
    if stored.address != cell:
        problem = f"is the baseline of {stored.address}, not of this place"
        return Found(path, cell, schema=schema, problem=problem, todo=RECORD_ANEW)
    return Found(path, cell, stored, schema)


def _schema(data: object) -> int | None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    return version if type(version) is int else None


def _cell_at(path: Path) -> Cell | None:
    profile, machine, tier, name = path.parts[-4:]
    number = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    if name != f"{_PREFIX}{number}{_SUFFIX}" or not (number.isascii() and number.isdigit()) or len(number) > 9:
        return None
    try:
        cell = Cell(profile, machine, tier, int(number))
    except BaselineError:
        return None
    return cell if name == cell.path(Path()).name else None


def _json_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".requests.parquet") + _SUFFIX)


def _order(found: Found) -> tuple[tuple[str, ...], int]:
    return found.path.parts[-4:-1], found.cell.context_tokens if found.cell else 0
