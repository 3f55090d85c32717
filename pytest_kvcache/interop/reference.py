"""Reads the CSV of LMCache's `multi-round-qa.py`, of which published figures are made."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop import results
from pytest_kvcache.interop.results import Series
from pytest_kvcache.load.records import OK, RequestRecord
from pytest_kvcache.workload.reference_csv import COLUMNS

_COUNTS = ("prompt_tokens", "generation_tokens", "user_id", "question_id")


def read(path: Path) -> list[Series]:
    """Return the one load of a CSV; it holds finished requests alone, and no arrivals of single tokens.

    Raises:
        ResultsError: Columns are missing, or a value is no number; the line and the column are named.
    """
    try:
        text = results.content(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ResultsError("is no CSV: it is not UTF-8", where=str(path)) from None
    requests = []
    try:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [each.strip() for each in next(lines)]
        _check(header, path)
        at = {name: header.index(name) for name in COLUMNS}
        for line in lines:
            if line:
                where = f"{path}: line {lines.line_num}"
                if len(line) != len(header):
                    raise ResultsError(f"has {len(line)} values for {len(header)} columns", where=where)
                requests.append(_record({name: _number(line[at[name]], name, where) for name in COLUMNS}))
    except csv.Error as error:
        raise ResultsError(f"is no CSV: {error}", where=str(path)) from None
    return [results.counted_from_start(requests, where=str(path))]


def _check(header: list[str], path: Path) -> None:
    missing = [name for name in COLUMNS if name not in header]
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if missing or twice:
        raise ResultsError(
            f"is no CSV of multi-round-qa.py: column {(missing or twice)[0]} is "
            f"{'missing' if missing else 'there twice'}; found {', '.join(header)[:200]}",
            where=str(path),
            todo=f"expected {','.join(COLUMNS)}",
        )


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = column not in _COUNTS or value == value // 1
    if not math.isfinite(value) or not whole or abs(value) > 1e15 or (column != "user_id" and value < 0):
        raise ResultsError(f"must be a {'whole ' if column in _COUNTS else ''}number, not {text!r:.40}",
                           where=f"{where}: {column}")  # fmt: skip
    return value


def _record(values: dict[str, float]) -> RequestRecord:
    start = values["launch_time"]
    return RequestRecord(
        user=int(values["user_id"]),
        round=int(values["question_id"]),
        intended_start_s=start,
        due_s=start,
        actual_start_s=start,
        first_token_s=start + values["ttft"],
        last_token_s=max(values["finish_time"], start + values["ttft"]),
        prompt_tokens=int(values["prompt_tokens"]),
        generated_tokens=int(values["generation_tokens"]),
        status=OK,
    )
