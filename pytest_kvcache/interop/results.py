"""What an importer gets out of another tool's file, and checks that all importers share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop.boots import why
from pytest_kvcache.load.records import RequestRecord

#: Longest file that is read (bytes): it is held in memory.
MAX_BYTES = 1 << 30
#: Wall-clock times that a measurement can have (s since 1970): 1990 to 2100.
_EARLIEST_S, _LATEST_S = 631_152_000.0, 4_102_444_800.0
#: Longest that a measurement may take (s).
_LONGEST_S = 30 * 86_400.0
#: A whole number that every part of the way can hold: JSON's, Parquet's and a float.
Count = Annotated[int, Field(ge=0, lt=2**53)]
Read = TypeVar("Read", bound=BaseModel)


class Foreign(BaseModel):
    """Base of what stands in another tool's file: types are not converted, and unknown keys may be there."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Series:
    """One load of another tool.

    Args:
        name: What tells it from the others of the same file, "" where there is one.
        started_at: Wall clock at the first start (s since 1970).
        requests: Times are in seconds after `started_at`.
        version: What the file says of its version, or of the tool's.
        model: Name of the model, "" where the file does not tell it.
        notes: What a person has to know of it.
    """

    name: str
    started_at: float
    requests: tuple[RequestRecord, ...]
    version: str = ""
    model: str = ""
    notes: tuple[str, ...] = ()


def content(path: Path) -> bytes:
    """Return what is in a file.

    Raises:
        ResultsError: It cannot be read, is empty, or is too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ResultsError(f"is longer than {MAX_BYTES >> 30} GiB", where=str(path), todo="split it")
        read = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if not read.strip():
        raise ResultsError("is empty", where=str(path))
    return read


def parsed(model: type[Read], text: bytes, *, where: str) -> Read:
    """Return JSON as a model.

    Raises:
        ResultsError: It is none, or a key is missing or has a wrong value.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ResultsError(why(error), where=where) from None


def counted_from_start(
    requests: Iterable[RequestRecord], *, where: str, name: str = "", version: str = "", model: str = ""
) -> Series:
    """Return requests whose times are on the wall clock (s since 1970) as a series that counts from the first start.

    Raises:
        ResultsError: There is none, none finished, or a time cannot be that of a measurement.
    """
    every = list(requests)
    starts = [each.actual_start_s for each in every if each.actual_start_s is not None]
    if not starts:
        raise ResultsError("holds no request that was sent", where=where)
    start = min(starts)
    if not _EARLIEST_S <= start <= _LATEST_S:
        raise ResultsError(f"the first request starts {start:g} s after 1970, which is no time of a run", where=where)
    shifted = tuple(_shifted(each, start, where=where) for each in every)
    if not any(each.status == "ok" for each in shifted):
        raise ResultsError("holds no request that finished", where=where)
    return Series(name, start, shifted, version=version, model=model)


def _shifted(record: RequestRecord, start: float, *, where: str) -> RequestRecord:
    def moved(time_s: float | None) -> float | None:
        return None if time_s is None else time_s - start

    arrivals = [at - start for at in record.token_times_s]
    order = [
        at for at in map(moved, (record.actual_start_s, record.first_token_s, record.last_token_s)) if at is not None
    ]
    # A clock of microseconds may put two equal times in the wrong order.
    wrong = any(later < earlier - 1e-3 for earlier, later in itertools.pairwise(order))
    if wrong or any(not math.isfinite(value) or not -1.0 <= value <= _LONGEST_S for value in (*order, *arrivals)):
        raise ResultsError(
            f"the times of user {record.user}, question {record.round} are none of a request: {order}", where=where
        )
    return replace(
        record,
        intended_start_s=record.intended_start_s - start,
        due_s=moved(record.due_s),
        actual_start_s=moved(record.actual_start_s),
        first_token_s=moved(record.first_token_s),
        last_token_s=moved(record.last_token_s),
        token_times_s=arrivals,
    )


Reader = Callable[[Path], list[Series]]
