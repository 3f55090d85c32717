"""The rows of a run as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.load import schema
from pytest_kvcache.load.records import RequestRecord, in_order

_INTEGERS = (
    "intended_prompt_tokens",
    "intended_generated_tokens",
    "prompt_tokens",
    "generated_tokens",
    "cached_tokens",
)


def to_frame(records: Iterable[RequestRecord]) -> pd.DataFrame:
    """Return the table, with one row for each request, in the order of the intended starts.

    Returns:
        The fields of `RequestRecord`: counts of tokens as `Int64`, times in seconds as `float64`, NaN where there are
        none.
    """
    columns = [f.name for f in fields(RequestRecord)]
    return _typed(pd.DataFrame([asdict(r) for r in in_order(records)], columns=columns))


def read(path: Path) -> pd.DataFrame:
    """Return the table that `records.save` wrote to `path`, as `to_frame` returns it.

    Raises:
        OSError: There is no such file.
        ResultsError: The file is not whole, is none of ours, or is of a newer version.
    """
    # Imported only here, when the measurement is over.
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    try:
        with path.open("rb") as opened:
            file = parquet.ParquetFile(opened)
            schema.check(file.schema_arrow, where=str(path))
            names = set(file.schema_arrow.names)
            table = file.read(columns=[column.name for column in schema.COLUMNS if column.name in names])
            table.validate(full=True)
    except (pa.ArrowException, ValueError, IndexError, MemoryError) as error:
        raise ResultsError(f"is no whole Parquet file: {first_line(error)}", where=str(path)) from None
    except OSError as error:
        if error.errno is not None:  # the system's; Arrow's own of a damaged file has no number
            raise
        raise ResultsError(f"is no whole Parquet file: {first_line(error)}", where=str(path)) from None
    frame = table.to_pandas(ignore_metadata=True)
    for column in schema.COLUMNS:
        if column.name not in names:
            frame[column.name] = ""
    return _typed(frame)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, cut to what fits a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    times = [c for c in frame.columns if c.endswith("_s") and c != "token_times_s"]
    return frame.astype(dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys(times, "float64"))
