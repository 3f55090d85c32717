"""Fills in the row of a request once its answer is over: status, stamps, tokens, and which server answered."""

from __future__ import annotations

import json
from typing import Any

from pytest_kvcache.client import framing, wire
from pytest_kvcache.client.wire import Exchange
from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord

_KINDS = {
    wire.NO_CONNECTION: records.NO_CONNECTION,
    wire.CLOSED: records.BROKEN,
    wire.TIMED_OUT: records.TIMED_OUT,
    wire.STALLED: records.STALLED,
    wire.MALFORMED: records.MALFORMED,
    wire.ENDED: records.CANCELLED,
}


class _StreamError(Exception):
    """A stream that is not what the API promises.

    Args:
        status: Status for the record.
        what: What is wrong, in words.
    """

    def __init__(self, status: str, what: str) -> None:
        self.status = status
        super().__init__(what)


def settle(exchange: Exchange, record: RequestRecord, *, start_s: float) -> str:
    """Fill in `record` from a finished exchange; return the answer's text, "" where the request failed.

    Args:
        exchange: An exchange that is over, whether it succeeded or failed.
        record: The row of the request.
        start_s: When the run started (CLOCK_MONOTONIC); stamps count from it.
    """
    record.due_s = exchange.due_s - start_s
    if exchange.sent_s is None and exchange.failed.startswith(wire.ENDED):
        record.error = exchange.failed
        return ""
    if exchange.sent_s is not None:
        record.actual_start_s = exchange.sent_s - start_s
    else:
        record.actual_start_s = record.due_s  # the client tried to send it: this is a failure, not an unsent request
    text: list[str] = []
    try:
        code = framing.status(exchange.pieces)
        if code and code != 200:
            body = b"".join(piece for _, piece in framing.body_pieces(exchange.pieces))
            raise _StreamError(records.HTTP_ERROR, f"HTTP {code}: {body[:300].decode(errors='replace')}")
        done = _read(exchange, record, text, start_s)
        if exchange.failed:
            kind = next(status for words, status in _KINDS.items() if exchange.failed.startswith(words))
            raise _StreamError(kind, exchange.failed)
        _check(record, done)
    except _StreamError as error:
        record.status, record.error = error.status, str(error)
        return ""
    except ValueError as error:
        record.status, record.error = records.MALFORMED, f"not HTTP: {error}"
        return ""
    record.status = records.OK
    if record.ttft_s is not None and record.server_queue_s is not None and record.server_ttft_s is not None:
        record.residual_s = record.ttft_s - record.server_queue_s - record.server_ttft_s
    return "".join(text)


def _read(exchange: Exchange, record: RequestRecord, text: list[str], start_s: float) -> bool:
    for at, event in framing.events(exchange.pieces):
        if event == b"[DONE]":
            return True
        try:
            _read_event(json.loads(event), at - start_s, record, text)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            what = f"{type(error).__name__} in event {event[:120]!r}"
            raise _StreamError(records.MALFORMED, what) from error
    return False


def _check(record: RequestRecord, done: bool) -> None:
    if not done:
        raise _StreamError(records.BROKEN, "the stream ended before [DONE]")
    if record.first_token_s is None:
        raise _StreamError(records.EMPTY, "no token arrived")
    if record.prompt_tokens is None:
        raise _StreamError(records.MALFORMED, "no usage in the stream")


def _read_event(data: dict[str, Any], at_s: float, record: RequestRecord, text: list[str]) -> None:
    if "error" in data:
        raise _StreamError(records.HTTP_ERROR, f"error in the stream: {str(data['error'])[:300]}")
    for choice in data.get("choices", ()):
        delta = choice.get("delta", {})
        _read_server(delta.get("role"), record)
        # Reasoning tokens count as tokens; a chunk with a role and no text does not.
        if (delta.get("reasoning_content") or "") + (delta.get("content") or ""):
            if record.first_token_s is None:
                record.first_token_s = at_s
            record.last_token_s = at_s
            record.token_times_s.append(at_s)
            text.append(delta.get("content") or "")
    _read_usage(data.get("usage"), record)
    _read_metrics(data.get("metrics"), record)


def _read_server(role: str | None, record: RequestRecord) -> None:
    # serving/vllm.py has each server name itself in its role.
    if role and "@" in role:
        record.server = role.partition("@")[2]


def _read_usage(usage: dict[str, Any] | None, record: RequestRecord) -> None:
    if usage:
        record.prompt_tokens = usage["prompt_tokens"]
        record.generated_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        record.cached_tokens = details.get("cached_tokens")


def _read_metrics(metrics: dict[str, Any] | None, record: RequestRecord) -> None:
    if metrics:
        queue, ttft = metrics.get("queue_time_ms"), metrics.get("time_to_first_token_ms")
        record.server_queue_s = None if queue is None else queue / 1e3
        record.server_ttft_s = None if ttft is None else ttft / 1e3
