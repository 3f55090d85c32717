"""Fills in the row of a request once its answer is over: status, stamps, tokens, and which server answered."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from pytest_kvcache.client import framing, wire
from pytest_kvcache.client.wire import Exchange
from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.redaction import redacted

#: Of a body that is no event stream, so many characters are shown, of so many bytes that are read.
_SHOWN, _READ_BYTES = 300, 4096
#: More tokens than this are no count.
_MOST_TOKENS = 10**12
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
    record.resent = exchange.resent
    if exchange.sent_s is None and exchange.failed.startswith(wire.ENDED):
        record.error = exchange.failed
        return ""
    if exchange.sent_s is not None:
        record.actual_start_s = exchange.sent_s - start_s
    else:
        record.actual_start_s = record.due_s  # the client tried to send it: this is a failure, not an unsent request
    reader = _Reader(record, start_s)
    try:
        head = framing.head_of(exchange.pieces)
        if head is not None and head.status != 200:
            raise _StreamError(records.HTTP_ERROR, _no_stream(head, exchange))
        done = reader.read(exchange)
        if exchange.failed and not (done and exchange.failed.startswith(wire.CLOSED)):
            kind = next(status for words, status in _KINDS.items() if exchange.failed.startswith(words))
            raise _StreamError(kind, exchange.failed)
        if head is not None and not reader.saw_event:
            raise _StreamError(records.MALFORMED, f"no event stream: {_no_stream(head, exchange)}")
        reader.check(done)
    except _StreamError as error:
        record.status, record.error = error.status, redacted(str(error))
        return ""
    except ValueError as error:
        record.status, record.error = records.MALFORMED, redacted(f"not HTTP: {error}")
        return ""
    record.status = records.OK
    if record.ttft_s is not None and record.server_queue_s is not None and record.server_ttft_s is not None:
        record.residual_s = record.ttft_s - record.server_queue_s - record.server_ttft_s
    return "".join(reader.text)


def _no_stream(head: framing.Head, exchange: Exchange) -> str:
    """Return what a person needs of an answer that is no event stream: its head, and how its body begins."""
    body = b""
    with contextlib.suppress(ValueError):
        for _, piece in framing.body_pieces(exchange.pieces):
            body += piece
            if len(body) >= _READ_BYTES:
                break
    # Secrets are taken out before the text is cut: half of one would stay.
    shown = redacted(body.decode(errors="backslashreplace"))[:_SHOWN]
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) or "an empty body"
    return f"HTTP {head.status}: {text}" + (f" ({head.words})" if head.words else "")


class _Reader:
    """Reads the events of one answer into its row.

    Args:
        record: The row.
        start_s: When the run started (CLOCK_MONOTONIC); stamps count from it.
    """

    def __init__(self, record: RequestRecord, start_s: float) -> None:
        self._record, self._start_s = record, start_s
        self._usage: object = None
        #: The answer's text, in parts.
        self.text: list[str] = []
        self.saw_event = False

    def read(self, exchange: Exchange) -> bool:
        """Read all events; return whether the stream came to its end."""
        for at, event in framing.events(exchange.pieces):
            self.saw_event = True
            if event == framing.DONE:
                return True
            try:
                self._event(json.loads(event), at - self._start_s)
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                what = f"{type(error).__name__} in event {redacted(repr(event)[1:])[:120]}"
                raise _StreamError(records.MALFORMED, what) from error
        return False

    def check(self, done: bool) -> None:
        """Fill in what the last usage says.

        Raises:
            _StreamError: The stream is not whole.
        """
        record = self._record
        if not done:
            raise _StreamError(records.BROKEN, "the stream ended before [DONE]")
        if record.first_token_s is None:
            raise _StreamError(records.EMPTY, "no token arrived")
        usage = self._usage
        if usage is None:
            raise _StreamError(records.MALFORMED, "no usage in the stream")
        if not isinstance(usage, dict):
            raise _StreamError(records.MALFORMED, f"usage is {_shown(usage)}")
        record.prompt_tokens = _count(usage, "prompt_tokens")
        record.generated_tokens = _count(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details")
        if details is not None and not isinstance(details, dict):
            raise _StreamError(records.MALFORMED, f"usage.prompt_tokens_details is {_shown(details)}")
        if details and details.get("cached_tokens") is not None:
            record.cached_tokens = _count(details, "cached_tokens")

    def _event(self, data: dict[str, Any] | None, at_s: float) -> None:
        if data is None:
            return
        if data.get("error") is not None:
            raise _StreamError(records.HTTP_ERROR, f"error in the stream: {redacted(str(data['error']))[:_SHOWN]}")
        record = self._record
        for choice in data.get("choices") or ():
            delta = choice.get("delta") or {}
            _read_server(delta.get("role"), record)
            if _has_output(delta):
                if record.first_token_s is None:
                    record.first_token_s = at_s
                record.last_token_s = at_s
                record.token_times_s.append(at_s)
                self.text.append(_text(delta.get("content")))
        if data.get("usage") is not None:
            self._usage = data["usage"]
        _read_metrics(data.get("metrics"), record)


def _has_output(delta: dict[str, Any]) -> bool:
    """Return whether a delta holds anything that the model generated; a role alone is nothing.

    vLLM calls the text of its reasoning parsers `reasoning` (`reasoning_content` before 0.12, and in other servers);
    tools are called in `tool_calls`, and in `function_call` of the older API (`DeltaMessage` in vLLM's
    `entrypoints/openai/protocol.py`; OpenAI's `chat.completion.chunk`).
    """
    if any(_text(delta.get(name)) for name in ("content", "reasoning", "reasoning_content", "refusal")):
        return True
    calls = [each.get("function") or {} for each in delta.get("tool_calls") or ()]
    return any(call.get("name") or call.get("arguments") for call in (*calls, delta.get("function_call") or {}))


def _text(content: Any) -> str:
    """Return the text of a content, which some servers send in parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError("content")
    return content or ""


def _count(counts: dict[str, Any], name: str) -> int:
    """Return a number of tokens of a usage.

    Raises:
        _StreamError: It is none.
    """
    value = counts.get(name)
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if type(whole) is not int or not 0 <= whole <= _MOST_TOKENS:
        raise _StreamError(records.MALFORMED, f"usage: {name} is {_shown(value) if name in counts else 'missing'}")
    return whole


def _shown(value: object) -> str:
    return redacted(json.dumps(value))[:80]


def _read_server(role: str | None, record: RequestRecord) -> None:
    # serving/vllm.py has each server name itself in its role.
    if role and "@" in role:
        record.server = role.partition("@")[2]


def _read_metrics(metrics: dict[str, Any] | None, record: RequestRecord) -> None:
    if metrics:
        queue, ttft = metrics.get("queue_time_ms"), metrics.get("time_to_first_token_ms")
        record.server_queue_s = None if queue is None else queue / 1e3
        record.server_ttft_s = None if ttft is None else ttft / 1e3
