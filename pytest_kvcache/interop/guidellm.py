"""Reads `benchmarks.json` of guidellm, which keeps each request with its times (looked up in 0.2 to 0.8).

guidellm 0.2 and 0.3 name the times of a request by themselves; 0.4 has them under `info.timings`, without a version;
0.5 and 0.6 write version 1 under `metadata.version`, 0.7 and 0.8 version 2, which moves the configuration and not the
requests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop import results
from pytest_kvcache.interop.results import Count, Foreign, Series
from pytest_kvcache.load.records import CANCELLED, OK, RequestRecord

NEWEST = 2
_EXPECTED = f"expected metadata.version 1 to {NEWEST} (guidellm 0.5 to 0.8), or none (0.2 to 0.4)"


class _Timings(Foreign):
    request_start: float | None = None
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None
    request_end: float | None = None
    resolve_start: float | None = None


class _Info(Foreign):
    conversation_id: str | None = None
    turn_index: Count | None = None
    error: str | None = None
    timings: _Timings


class _Request(Foreign):
    """A request of any version: `info` since 0.4, the times themselves before."""

    info: _Info | None = None
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_tokens: Count | None = None
    start_time: float | None = None
    end_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    error: str | None = None


class _Requests(Foreign):
    successful: list[_Request] | None = None
    errored: list[_Request] | None = None
    incomplete: list[_Request] | None = None


class _Totals(Foreign):
    successful: Count | None = None


class _Metrics(Foreign):
    request_totals: _Totals | None = None


class _Benchmark(Foreign):
    config: dict[str, Any] = Field(default_factory=dict)
    args: dict[str, Any] = Field(default_factory=dict)
    metrics: _Metrics = Field(default_factory=_Metrics)
    request_totals: _Totals | None = None
    requests: _Requests


class _Metadata(Foreign):
    version: int
    guidellm_version: str = ""


class _Head(Foreign):
    """What says the version, before the rest is looked at."""

    metadata: _Metadata | None = None


class _Report(_Head):
    args: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    benchmarks: list[_Benchmark]


def read(path: Path) -> list[Series]:
    """Return a load for each benchmark of a file, which has one for each rate.

    Raises:
        ResultsError: It is of an unknown version or of another tool, keeps no requests, or a key has a wrong value.
    """
    content = results.content(path)
    where = str(path)
    head = results.parsed(_Head, content, where=where)
    if head.metadata is not None and not 1 <= head.metadata.version <= NEWEST:
        raise ResultsError(f"metadata.version: is {head.metadata.version}; {_EXPECTED}", where=where)
    try:
        report = results.parsed(_Report, content, where=where)
    except ResultsError as error:
        raise ResultsError(error.what, where=where, todo=_EXPECTED) from None
    if not report.benchmarks:
        raise ResultsError("benchmarks: is empty", where=where)
    version = head.metadata.guidellm_version if head.metadata else ""
    series = [
        _series(each, number, path, version=version, model=_model(report, each))
        for number, each in enumerate(report.benchmarks)
    ]
    names = [each.name for each in series]
    if len(set(names)) == len(names):
        return series
    return [replace(each, name=f"{each.name} #{at}".strip()) for at, each in enumerate(series)]


def _series(benchmark: _Benchmark, number: int, path: Path, *, version: str, model: str) -> Series:
    where = f"{path}: benchmarks.{number}.requests"
    requests = benchmark.requests
    finished = requests.successful or []
    totals = benchmark.request_totals or benchmark.metrics.request_totals
    total = totals.successful if totals else None
    if not finished:
        raise ResultsError(
            f"keeps none of its {total or 0} finished requests, and so no TTFT per request",
            where=where,
            todo="measure without a sample size of 0, which leaves requests out of the file",
        )
    users: dict[str, int] = {}
    rows = [_row(each, OK, users, f"{where}.successful.{at}") for at, each in enumerate(finished)]
    rows += [_row(each, "error", users, f"{where}.errored.{at}") for at, each in enumerate(requests.errored or [])]
    rows += [
        _row(each, CANCELLED, users, f"{where}.incomplete.{at}") for at, each in enumerate(requests.incomplete or [])
    ]
    found = results.counted_from_start(
        [row for row in rows if row is not None], where=where, name=_strategy(benchmark), version=version, model=model
    )
    if total is None or total <= len(finished):
        return found
    note = (
        f"{found.name or 'the benchmark'}: a sample of {len(finished)} of {total} finished requests; rates are too low"
    )
    return replace(found, notes=(note,))


def _row(request: _Request, status: str, users: dict[str, int], where: str) -> RequestRecord | None:
    """Return the row of a request, None for one that was never sent.

    Raises:
        ResultsError: It finished, and a time of it is missing.
    """
    info = request.info
    if info is not None:
        t = info.timings
        start, first, last = t.request_start, t.first_token_iteration, t.last_token_iteration or t.request_end
        keys = ("info.timings.request_start", "info.timings.first_token_iteration", "info.timings.request_end")
        error = info.error
    else:
        start, first, last = request.start_time, request.first_token_time, request.last_token_time or request.end_time
        keys = ("start_time", "first_token_time", "end_time")
        error = request.error
    if status == OK:
        for value, key in zip((start, first, last), keys, strict=True):
            if value is None:
                todo = "measure with streaming, without which there is no TTFT" if "first" in key else ""
                raise ResultsError(f"{key}: is missing", where=where, todo=todo)
    if start is None:
        return None
    # Without conversations each request is a user of its own.
    session = (info.conversation_id if info else None) or f"request {len(users)}"
    return RequestRecord(
        user=users.setdefault(session, len(users)),
        round=((info.turn_index if info else None) or 0) + 1,
        intended_start_s=start,
        due_s=start,
        actual_start_s=start,
        first_token_s=first if status == OK else None,
        last_token_s=last if status == OK else None,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=request.output_tokens,
        cached_tokens=request.cached_tokens,
        status=status,
        error=(error or "") if status != OK else "",
    )


def _strategy(benchmark: _Benchmark) -> str:
    """Return how requests were sent, as a person names it: `constant 2`, `concurrent 8`, "" where it is not told."""
    found = benchmark.config.get("strategy") or benchmark.args.get("strategy")
    if not isinstance(found, dict):
        return ""
    kind = found.get("type_")
    amount = next((found[key] for key in ("rate", "streams") if isinstance(found.get(key), int | float)), None)
    parts = [kind if isinstance(kind, str) else "", "" if amount is None else f"{amount:g}"]
    return " ".join(part for part in parts if part)


def _model(report: _Report, benchmark: _Benchmark) -> str:
    """Return the model, wherever this version has it; "" where nowhere."""
    for place in (benchmark.config, _inner(report.config, "spec"), report.args):
        for value in (_inner(place, "backend").get("model"), place.get("model")):
            if isinstance(value, str) and value:
                return value
    return ""


def _inner(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}
