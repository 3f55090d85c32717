"""All loads that a folder of runs holds, as one table; what was read once is kept in an index beside the folder.

The index holds nothing that the runs' own files do not: it may be removed at any time. A load is read again where size
or time of its run.json changed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop import boots
from pytest_kvcache.interop.boots import LeftLoad
from pytest_kvcache.runs.files import replace_whole

_VERSION_KEY, _VERSION = b"pytest_kvcache.history_version", b"1"
_TEXTS = ("run", "tier", "boot", "label", "profile", "machine", "commit", "versions", "keys", "faults", "error")
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("context_tokens", pa.int64()),
        ("started_at", pa.float64()),
        ("imported", pa.bool_()),
        *((name, pa.string()) for name in _TEXTS),
        ("figures", pa.map_(pa.string(), pa.float64())),
    ],
    metadata={_VERSION_KEY: _VERSION},
)


def index_path(runs: Path) -> Path:
    """Return where the index of a folder of runs is: beside the folder."""
    return runs.with_name(f"{runs.name}-history.parquet")


def read(runs: Path) -> pa.Table:
    """Return a row for each load, in the order of their starts.

    Args:
        runs: Folder of runs.

    Returns:
        `path` (of its run.json), `run`, `tier`, `boot`, `context_tokens`, `started_at` (s since 1970), `label`,
        `profile`, `machine`, `commit` ("" where the run did not keep them), `versions` and `keys` (JSON objects of the
        engine's versions and of what must be equal for a comparison), `faults` ("" where figures may rest on it),
        `imported`, `figures` (a map of all estimates), and `error`, why the file could not be read, "" otherwise.

    Raises:
        ResultsError: The folder is not there.
    """
    if not runs.is_dir():
        raise ResultsError("no such folder of runs", where=str(runs), todo="name one with --kv-runs")
    known = _known(index_path(runs))
    rows, fresh = [], 0
    for path, stat in _files(runs):
        kept = known.get((path, stat.st_size, stat.st_mtime_ns))
        if kept is None:
            fresh += 1
            kept = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, **_facts(Path(path))}
        rows.append(kept)
    rows.sort(key=lambda row: (row["started_at"], row["path"]))
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    if fresh or len(rows) != len(known):
        with contextlib.suppress(OSError):  # a folder that is read-only has no index
            replace_whole(index_path(runs), lambda partial: _save(table, partial))
    return table


def frame(table: pa.Table) -> pd.DataFrame:
    """Return the table without its figures, which are a dict in each row of the column of that name."""
    found: pd.DataFrame = table.drop_columns(["figures"]).to_pandas()
    figures: list[Any] = [dict(pairs or []) for pairs in table.column("figures").to_pylist()]
    found["figures"] = pd.Series(figures, dtype="object")
    return found


def _save(table: pa.Table, path: Path) -> None:
    with path.open("wb") as opened:
        parquet.write_table(table, opened, compression="zstd")


def _known(path: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return what an earlier index knows; nothing where there is none, or a damaged one or one of another version."""
    try:
        with path.open("rb") as opened:
            table = parquet.read_table(opened)
        if (table.schema.metadata or {}).get(_VERSION_KEY) != _VERSION:
            return {}
        table = table.select(_SCHEMA.names).cast(_SCHEMA)
        table.validate(full=True)
        rows = table.to_pylist()
    except (OSError, pa.ArrowException, ValueError, KeyError):
        return {}
    return {(row["path"], row["size"], row["mtime_ns"]): row for row in rows}


def _files(runs: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and state of each run.json; a name that is no text is passed over, as no table can hold it."""
    for run in _folders(str(runs)):
        for tier in _folders(run.path):
            for boot in _folders(tier.path):
                if "boot-" not in boot.name:
                    continue
                for load in _folders(boot.path):
                    path = f"{load.path}/{boots.RUN}"
                    with contextlib.suppress(OSError, UnicodeEncodeError):
                        path.encode()
                        if load.name.startswith("context-"):
                            yield path, os.stat(path)  # noqa: PTH116 - ten thousand times


def _folders(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _facts(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_TEXTS, "")
    row |= {"context_tokens": 0, "started_at": 0.0, "imported": False, "figures": {}}
    row |= dict(zip(("boot", "tier", "run"), (each.name for each in path.parents[1:4]), strict=True))
    try:
        load = boots.read(path)
    except ResultsError as error:
        return row | {"error": error.what}
    return row | _told(load)


def _told(load: LeftLoad) -> dict[str, Any]:
    facts, session = load.facts, load.facts.session
    keys = {key: value for key, value in facts.comparability.items() if key != "workload.context_tokens"}
    return {
        "context_tokens": load.context_tokens,
        "started_at": facts.load.started_at or 0.0,
        "label": facts.label,
        "profile": session.profile,
        "machine": session.machine,
        "commit": session.commit,
        "versions": json.dumps(facts.versions, sort_keys=True),
        "keys": json.dumps(keys, sort_keys=True),
        "faults": "; ".join(facts.faults),
        "imported": facts.imported is not None,
        "figures": list(facts.estimates.items()),
    }
