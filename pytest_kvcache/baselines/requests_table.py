"""Packs the requests of a baseline's boots into one small Parquet file, and unpacks them again.

Requests are kept so that a baseline can be cut to the rounds that a shorter run had (`rounds.cut`), and so that people
can look into it later. Times are integers of 10 µs, delta-encoded and compressed with Zstandard: some fifteen bytes a
request. Arrival times of single tokens are not kept: they would be most of the file, and no decision rests on them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import RECORD_ANEW, RequestsFile

#: Limits of a file that is read: its length (bytes), its requests, and its length once decompressed (bytes).
MAX_BYTES, MAX_ROWS, MAX_UNPACKED = 16 << 20, 1_000_000, 128 << 20
_TICKS_PER_S = 100_000
_TIMES = ("intended_start_s", "actual_start_s", "first_token_s", "last_token_s", "server_queue_s", "server_ttft_s")
_COUNTS = ("prompt_tokens", "generated_tokens", "cached_tokens")
_SCHEMA = pa.schema(
    [
        pa.field("boot", pa.int32(), nullable=False),
        pa.field("user", pa.int32(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        *(pa.field(name, pa.int32()) for name in (*_TIMES, *_COUNTS)),
        pa.field("status", pa.string(), nullable=False),
    ]
)


def pack(boots: Sequence[pd.DataFrame]) -> bytes:
    """Return the Parquet file that holds the requests of all boots.

    Args:
        boots: One table of requests for each boot, as `load.records` has it; columns that are not kept are left out.

    Raises:
        BaselineError: There are more requests than `unpack` would read, or a time is beyond six hours.
    """
    frames = []
    for number, rows in enumerate(boots):
        kept = pd.DataFrame({"boot": np.full(len(rows), number, dtype=np.int32)})
        for name in ("user", "round"):
            kept[name] = rows[name].to_numpy()
        for name in _TIMES:
            ticks = (rows[name].astype("float64") * _TICKS_PER_S).round()
            if (ticks.abs() > np.iinfo(np.int32).max).any():
                raise BaselineError(f"{name} lies beyond six hours: too long a run for a baseline")
            kept[name] = ticks.astype("Int64").to_numpy()
        for name in _COUNTS:
            kept[name] = rows[name].astype("Int64").to_numpy()
        kept["status"] = rows["status"].to_numpy()
        frames.append(kept)
    table = pa.Table.from_pandas(pd.concat(frames), schema=_SCHEMA, preserve_index=False)
    if table.num_rows > MAX_ROWS:
        raise BaselineError(f"{table.num_rows} requests are more than a baseline keeps ({MAX_ROWS})")
    out = io.BytesIO()
    numbers = [field.name for field in _SCHEMA if field.name != "status"]
    pq.write_table(
        table.replace_schema_metadata(None),
        out,
        compression="zstd",
        compression_level=19,
        use_dictionary=["status"],
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        write_statistics=False,
        store_schema=False,
    )
    return out.getvalue()


def describe(packed: bytes, rows: int) -> RequestsFile:
    """Return what a cell's JSON file says of its table of requests: digest and number of rows."""
    return RequestsFile(sha256=hashlib.sha256(packed).hexdigest(), rows=rows)


def unpack(packed: bytes, expected: RequestsFile, *, where: str) -> pd.DataFrame:
    """Return the requests of all boots.

    The digest is checked before a byte is interpreted, and the size that the file states before anything is
    decompressed.

    Args:
        packed: The whole file.
        expected: What the cell's JSON file says of this file.
        where: Name of the file, for errors.

    Returns:
        One row for each request: `boot` (from 0), `user`, `round`, times in seconds after the start of the run, token
        counts, `status`.

    Raises:
        BaselineError: The file is not the one that the cell names, is damaged or too large, or is no table of requests.
    """
    if len(packed) > MAX_BYTES:
        raise BaselineError(f"is no table of requests: longer than {MAX_BYTES} bytes", where=where, todo=RECORD_ANEW)
    if hashlib.sha256(packed).hexdigest() != expected.sha256:
        raise BaselineError("is not the file that its baseline names (SHA-256 differs)", where=where, todo=RECORD_ANEW)
    try:
        table = _read(packed, expected)
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        raise BaselineError(f"is no table of requests: {error!s:.200}", where=where, todo=RECORD_ANEW) from None
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    for name in _TIMES:
        frame[name] = frame[name].astype("float64") / _TICKS_PER_S
    return frame.astype(dict.fromkeys(_COUNTS, "Int64"))


def _read(packed: bytes, expected: RequestsFile) -> pa.Table:
    file = pq.ParquetFile(
        pa.BufferReader(packed), thrift_string_size_limit=1 << 20, thrift_container_size_limit=1 << 16
    )
    about = file.metadata
    if file.schema_arrow.remove_metadata() != _SCHEMA:
        raise ValueError("other columns than a table of requests has")
    if about.num_rows != expected.rows or about.num_rows > MAX_ROWS:
        raise ValueError(f"{about.num_rows} requests, and its baseline says {expected.rows}")
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    sizes = [column.total_uncompressed_size for column in columns]
    if min(sizes, default=0) < 0 or sum(sizes) > MAX_UNPACKED:
        raise ValueError(f"more than {MAX_UNPACKED} bytes once decompressed")
    table = file.read()
    table.validate(full=True)
    return table
