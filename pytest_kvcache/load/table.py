"""The rows of a run as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

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
        pyarrow.ArrowInvalid: The file is not whole.
    """
    return _typed(pd.read_parquet(path))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    times = [c for c in frame.columns if c.endswith("_s") and c != "token_times_s"]
    return frame.astype(dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys(times, "float64"))
