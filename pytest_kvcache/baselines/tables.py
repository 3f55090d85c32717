"""Checks whether the tables of requests beside baselines are there and whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_kvcache.baselines import requests_table
from pytest_kvcache.baselines.files import Found
from pytest_kvcache.baselines.store import read_bytes
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import StoredCell, requests_path


def problems(found: Sequence[Found]) -> dict[Path, str]:
    """Return why a table of requests cannot be read, by the baseline's path; tables without a problem are left out.

    Every table is read to find out, some 10 kB a baseline.
    """
    return {f.path: why for f in found if f.stored is not None and (why := _table_problem(f.path, f.stored))}


def _table_problem(path: Path, stored: StoredCell) -> str:
    if stored.requests is None:
        return ""
    table = requests_path(path)
    try:
        data = read_bytes(table, root=path.parents[3], limit=requests_table.MAX_BYTES)
    except BaselineError as error:
        return f"its table of requests {error.what}" + (f": {error.todo}" if error.todo else "")
    if data is None:
        return f"its table of requests is missing: {table.name}"
    try:
        requests_table.unpack(data, stored.requests, where=str(table))
    except BaselineError as error:
        return f"its table of requests is damaged: it {error.what}"
    return ""
