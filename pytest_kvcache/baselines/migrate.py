"""Carrying baseline files of an older schema over to the current one.

Schema 2 judged TTFT by medians of sessions. It keeps every request of every boot, so the figure that is judged now is
computed from those requests, and nothing needs to be measured anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_kvcache.baselines import requests_table
from pytest_kvcache.baselines.store import Write, read_bytes
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import (
    MAX_JSON_BYTES,
    RECORD_ANEW,
    SCHEMA,
    RequestsFile,
    parse_json,
    requests_path,
    validated,
)
from pytest_kvcache.verdict.rounds import judged_figures

#: The schema that can be carried over.
FROM = 2
_GONE = "ttft_session_s"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Boot(_Kept):
    figures: Annotated[dict[str, float], Field(max_length=200)]


class _Cell(_Kept):
    boots: Annotated[list[_Boot], Field(max_length=500)]
    requests: RequestsFile


def carry_over(root: Path, path: Path) -> Write:
    """Return the write that carries the file at `path`, of schema `FROM`, over to the current schema.

    Raises:
        BaselineError: The file is damaged, or the table of requests beside it is missing or is not the one it names.
    """
    data = read_bytes(path, root=root, limit=MAX_JSON_BYTES)
    beside = requests_path(path)
    packed = read_bytes(beside, root=root, limit=requests_table.MAX_BYTES)
    if data is None or packed is None:
        raise BaselineError("its requests are not there", where=str(beside), todo=RECORD_ANEW)
    try:
        old = _Cell.model_validate(parse_json(data, where=str(path)))
    except ValidationError as error:
        raise BaselineError(f"is not a baseline: {error.errors()[0]['msg']:.200}", where=str(path)) from None
    rows = requests_table.unpack(packed, old.requests, where=str(beside))
    new: dict[str, Any] = old.model_dump(mode="json") | {"schema_version": SCHEMA}
    for number, boot in enumerate(new["boots"]):
        boot["figures"].pop(_GONE, None)
        figures = judged_figures(rows[rows["boot"] == number])
        if not figures:
            raise BaselineError(f"boot {number + 1} has no requests that finished", where=str(beside), todo=RECORD_ANEW)
        boot["figures"].update(figures)
    stored = validated(new, where=str(path))
    if stored.address.path(root) != path:
        raise BaselineError(f"is the baseline of {stored.address}, not of this place", where=str(path))
    return Write(stored, packed)
