"""Reads `profile_export.jsonl` of aiperf: a record for each request, since aiperf 0.2 (looked up in 0.2 to 0.14).

The file has no version of its own. Beside it lies `profile_export_aiperf.json`, whose schema has one (1.0 to 1.5 so
far); where that is there it is checked, and it tells the version of aiperf and the model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop import results
from pytest_kvcache.interop.results import Count, Foreign, Series
from pytest_kvcache.load.records import CANCELLED, OK, RequestRecord

NAME = "profile_export.jsonl"
_SUMMARY = "profile_export_aiperf.json"
_SCHEMA = "1"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
_PROFILING = "profiling"
#: A second. Of two whole numbers Python gives the nearest quotient; a float would be rounded before.
_NS = 1_000_000_000


class _Metadata(Foreign):
    session_num: Count
    conversation_id: str | None = None
    x_correlation_id: str | None = None
    turn_index: Count | None = None
    request_start_ns: Annotated[int, Field(ge=0, lt=2**63)]
    request_end_ns: Annotated[int, Field(ge=0, lt=2**63)]
    benchmark_phase: str
    was_cancelled: bool = False


class _Value(Foreign):
    value: float | list[float] | str | bool | None
    unit: str


class _Error(Foreign):
    code: int | None = None
    type: str | None = None
    message: str | None = None


class _Record(Foreign):
    metadata: _Metadata
    metrics: dict[str, _Value]
    error: _Error | None = None


class _Summary(Foreign):
    schema_version: str | None = None
    aiperf_version: str | None = None
    input_config: dict[str, Any] = Field(default_factory=dict)


def read(path: Path) -> list[Series]:
    """Return the one load of a file; records of the warm-up are left out.

    Raises:
        ResultsError: It is another file of aiperf or of another tool, or a record has a wrong value: line and key are
            named.
    """
    content = results.content(path)
    _refuse_others(content, path)
    version, model = _beside(path.with_name(_SUMMARY))
    requests: list[RequestRecord] = []
    users: dict[str, int] = {}
    warm_up = 0
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        record = results.parsed(_Record, line, where=where)
        about = record.metadata
        if about.benchmark_phase != _PROFILING:
            warm_up += 1
            continue
        session = about.x_correlation_id or about.conversation_id or str(about.session_num)
        user = users.setdefault(session, len(users))
        requests.append(_row(record, user, where))
    series = results.counted_from_start(requests, where=str(path), version=version, model=model)
    notes = (f"{warm_up} records of the warm-up are left out",) if warm_up else ()
    return [replace(series, notes=notes)]


def _refuse_others(content: bytes, path: Path) -> None:
    """Refuse, by their names, the other files that people take for this one.

    Raises:
        ResultsError: It is one of them.
    """
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return  # several lines of JSON are no JSON; a line is judged where it stands
    if not isinstance(whole, dict) or "metadata" in whole:
        return
    if "experiments" in whole:
        what = "is profile_export.json of genai-perf, which this version does not read"
    elif "input_config" in whole:
        what = f"is {_SUMMARY}, which has statistics and no TTFT per request"
    else:
        what = f"is no {NAME} of aiperf"
    raise ResultsError(what, where=str(path), todo=f"name aiperf's {NAME}, with a record of each request in a line")


def _beside(path: Path) -> tuple[str, str]:
    """Return aiperf's version and the model, as the summary beside the records tells them.

    Raises:
        ResultsError: The summary is of a newer schema, or damaged.
    """
    if not path.is_file():
        return "", ""
    summary = results.parsed(_Summary, results.content(path), where=str(path))
    schema = summary.schema_version or f"{_SCHEMA}.0"
    if schema.partition(".")[0] != _SCHEMA:
        raise ResultsError(
            f"schema_version: is {schema!r:.40}; expected {_SCHEMA}.x, of aiperf 0.2 to 0.14", where=str(path)
        )
    return summary.aiperf_version or "", _model(summary.input_config)


def _model(config: dict[str, Any]) -> str:
    """Return the first model: `endpoint.model_names`, which became `models.items`; "" where neither is there."""
    for place, key in (("endpoint", "model_names"), ("models", "items")):
        inner = config.get(place)
        found = inner.get(key) if isinstance(inner, dict) else None
        first = found[0] if isinstance(found, list) and found else None
        name = first.get("name") if isinstance(first, dict) else first
        if isinstance(name, str):
            return name
    return ""


def _row(record: _Record, user: int, where: str) -> RequestRecord:
    about, metrics = record.metadata, record.metrics
    start = about.request_start_ns / _NS
    row = RequestRecord(
        user=user,
        round=(about.turn_index or 0) + 1,
        intended_start_s=start,
        due_s=start,
        actual_start_s=start,
        prompt_tokens=_count(metrics, "input_sequence_length", where),
        generated_tokens=_count(metrics, "output_sequence_length", where),
        cached_tokens=_count(metrics, "usage_prompt_cache_read_tokens", where),
    )
    if about.was_cancelled:
        row.status, row.error = CANCELLED, "cancelled"
        return row
    if record.error is not None:
        row.status, row.error = "error", f"{record.error.code or ''} {record.error.message or ''}".strip()
        return row
    ttft = _duration(metrics, "time_to_first_token", where)
    if ttft is None:
        raise ResultsError(
            "metrics.time_to_first_token: is missing", where=where, todo="measure with --streaming, which aiperf needs"
        )
    latency = _duration(metrics, "request_latency", where)
    row.status = OK
    row.first_token_s = start + ttft
    row.last_token_s = about.request_end_ns / _NS if latency is None else start + latency
    row.token_times_s = _arrivals(metrics, row.first_token_s, where)
    return row


def _duration(metrics: dict[str, _Value], name: str, where: str) -> float | None:
    if name not in metrics:
        return None
    value = _scaled(metrics[name], name, where)
    if isinstance(value, list):
        raise ResultsError("must be a number, not a list", where=f"{where}: metrics.{name}.value")
    return value


def _arrivals(metrics: dict[str, _Value], first_s: float, where: str) -> list[float]:
    """Return when each chunk arrived, of the gaps between them; empty where aiperf kept none."""
    name = "inter_chunk_latency"
    gaps = _scaled(metrics[name], name, where) if name in metrics else []
    if not isinstance(gaps, list):
        raise ResultsError("must be a list", where=f"{where}: metrics.{name}.value")
    times = [first_s]
    for gap in gaps:
        times.append(times[-1] + gap)
    return times if gaps else []


def _scaled(metric: _Value, name: str, where: str) -> float | list[float]:
    """Return a duration or several in seconds.

    Raises:
        ResultsError: It is none, or its unit is none that is known.
    """
    if metric.unit not in _SECONDS:
        raise ResultsError(
            f"is {metric.unit!r:.40}; expected one of {', '.join(_SECONDS)}", where=f"{where}: metrics.{name}.unit"
        )
    factor, value = _SECONDS[metric.unit], metric.value
    if isinstance(value, list):
        return [factor * each for each in value]
    if isinstance(value, float | int) and not isinstance(value, bool) and value >= 0:
        return factor * value
    raise ResultsError(f"must be a number of 0 or more, not {value!r:.40}", where=f"{where}: metrics.{name}.value")


def _count(metrics: dict[str, _Value], name: str, where: str) -> int | None:
    value = metrics[name].value if name in metrics else None
    if value is None:
        return None
    if isinstance(value, float | int) and not isinstance(value, bool) and value == int(value) and 0 <= value < 2**53:
        return int(value)
    raise ResultsError(f"must be a whole number, not {value!r:.40}", where=f"{where}: metrics.{name}.value")
