"""Fills in the row of a request once its answer is over: status, stamps, tokens, and which server answered."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from pytest_kvcache.client import event_stream, framing, wire
from pytest_kvcache.client.wire import Exchange
from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.redaction import redacted

#: Of a body that is no event stream, so many characters are shown, of so many bytes that are read.
_SHOWN, _READ_BYTES = 300, 4096
#: Of the words in a row, so many characters are kept.
_WORDS = 1000
#: More tokens than this are no count.
_MOST_TOKENS = 10**12
#: What a delta calls the text that the model generated, whatever became of it. vLLM has `content` and `reasoning`,
#: which was `reasoning_content` before its pull request 27752 and still is in SGLang, TensorRT-LLM and DeepSeek;
#: OpenAI has `refusal` and `audio`, OpenRouter `reasoning_details`, LiteLLM `thinking_blocks`.
_OUTPUT = (
    "content", "reasoning", "reasoning_content", "refusal", "audio",
    "reasoning_details", "reasoning_text", "thinking", "thinking_blocks",
)  # fmt: skip
#: Where the parts of such a text have their words: `thinking` in Mistral's parts, `transcript` and `data` in audio.
_PARTS = ("text", "content", "reasoning", "thinking", "summary", "refusal", "transcript", "data")
#: Reasons to finish with which a server gives an answer up: vLLM and SGLang have `abort`, OpenRouter and vLLM `error`.
_GIVEN_UP = ("abort", "error")
_PARTS_OF_ANSWERS = frozenset({"choices", "usage", "metrics"})
#: What JSON of another shape than that of a chunk raises where it is read.
_ODD = (ValueError, AttributeError, TypeError, LookupError, ArithmeticError, RecursionError)
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
        no_stream = head is not None and not reader.saw_event and _no_stream(head, exchange)
        if exchange.failed and not done:  # after the last event, nothing that happens to the connection matters
            kind = next(status for words, status in _KINDS.items() if exchange.failed.startswith(words))
            raise _StreamError(kind, exchange.failed + (f"; the answer until then: {no_stream}" if no_stream else ""))
        if no_stream:
            raise _StreamError(records.MALFORMED, f"no event stream: {no_stream}")
        reader.check(done)
    except _StreamError as error:
        record.status, record.error = error.status, _printable(f"{error}{reader.aside}")
        return ""
    except ValueError as error:
        record.status, record.error = records.MALFORMED, _printable(f"not HTTP: {error}")
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
    text = redacted(body.decode(errors="backslashreplace"))[:_SHOWN] or "an empty body"
    return f"HTTP {head.status}: {text}" + (f" ({head.words})" if head.words else "")


def _printable(text: str) -> str:
    """Return words of a server on one line that a terminal can show and a file can hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redacted(text)[:_WORDS])


class _Reader:
    """Reads the events of one answer into its row.

    Args:
        record: The row.
        start_s: When the run started (CLOCK_MONOTONIC); stamps count from it.
    """

    def __init__(self, record: RequestRecord, start_s: float) -> None:
        self._record, self._start_s = record, start_s
        self._usage: object = None
        self._finished_s: float | None = None
        self._began_s = 0.0
        #: The answer's text, in parts.
        self.text: list[str] = []
        self.saw_event = False
        #: Words of the last event that is no part of an answer: servers tell of failures in many forms.
        self.aside = ""

    def read(self, exchange: Exchange) -> bool:
        """Read all events; return whether the stream came to its end."""
        for began, at, kind, event in event_stream.typed_events(exchange.pieces):
            self.saw_event = True
            self._began_s = began - self._start_s
            if event == event_stream.DONE:
                return True
            text = event.decode(errors="replace")  # as the standard decodes a stream
            if kind == b"error":
                raise _StreamError(records.HTTP_ERROR, f"error in the stream: {redacted(text)[:_SHOWN]}")
            if kind and text[:1] != "{":
                continue  # a ping, or whatever else is no message
            try:
                self._event(json.loads(text), at - self._start_s)
            except _ODD as error:
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
        usage = self._usage
        if record.first_token_s is None and self._finished_s is not None and _is_one_token(usage):
            # A single token may have no words: the mark that begins a model's reasoning, or the end of its answer.
            self._token(self._finished_s)
        if record.first_token_s is None:
            raise _StreamError(records.EMPTY, "no token arrived")
        if usage is None:
            raise _StreamError(records.MALFORMED, "no usage in the stream")
        if not isinstance(usage, dict):
            raise _StreamError(records.MALFORMED, f"usage is {_shown(usage)}")
        record.prompt_tokens = _count(usage, "prompt_tokens")
        record.generated_tokens = _count(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details")
        if details is not None and not isinstance(details, dict):
            raise _StreamError(records.MALFORMED, f"usage.prompt_tokens_details is {_shown(details)}")
        cached = _count(details, "cached_tokens") if details and details.get("cached_tokens") is not None else None
        for name, count in (("prompt_tokens", record.prompt_tokens), ("completion_tokens", record.generated_tokens)):
            if not count:
                raise _StreamError(records.MALFORMED, f"usage: {name} is 0 of an answer with output")
        if cached is not None and cached > record.prompt_tokens:
            what = f"usage: cached_tokens is {cached} of {record.prompt_tokens} prompt tokens"
            raise _StreamError(records.MALFORMED, what)
        record.cached_tokens = cached

    def _event(self, data: dict[str, Any] | None, at_s: float) -> None:
        if data is None:
            return
        if data.get("error") or data.get("object") == "error":
            told = redacted(str(data.get("error") or data))[:_SHOWN]
            raise _StreamError(records.HTTP_ERROR, f"error in the stream: {told}")
        record = self._record
        for choice in data.get("choices") or ():
            delta, reason = choice.get("delta") or {}, choice.get("finish_reason")
            _read_server(delta.get("role"), record)
            if choice.get("error") or reason in _GIVEN_UP:
                told = redacted(str(choice.get("error") or f"finish_reason is {reason!r}"))[:_SHOWN]
                raise _StreamError(records.HTTP_ERROR, f"error in the stream: {told}")
            if self._finished_s is None and reason:
                self._finished_s = at_s
            if _has_output(choice):
                self._token(at_s)
                self.text.append(_text(delta.get("content"), ("text",)))
        if data.get("usage") is not None:
            self._usage = data["usage"]
        if data and not _PARTS_OF_ANSWERS & data.keys():
            self.aside = f"; beside the answer the server wrote {redacted(json.dumps(data))[:_SHOWN]}"
        _read_metrics(data.get("metrics"), record)

    def _token(self, at_s: float) -> None:
        record = self._record
        if record.first_token_s is None:
            record.first_token_s = at_s
        elif self._began_s == record.first_token_s:
            record.first_token_shared = True
        record.last_token_s = at_s
        record.token_times_s.append(at_s)


def _has_output(choice: dict[str, Any]) -> bool:
    """Return whether a choice's delta holds anything that the model generated; a role or an id alone is nothing.

    Tools are called in `tool_calls`, and in `function_call` of the older API (vLLM's `DeltaMessage`; OpenAI's
    `chat.completion.chunk`). A token without words, such as the mark of a parser, is known by its id or its
    log-probability, where these were asked for (vLLM's `chat_completion_stream_generator`).
    """
    delta, logprobs = choice.get("delta") or {}, choice.get("logprobs") or {}
    content = delta.get("content")
    if content and type(content) is str:  # most tokens of most runs: the rest takes ten times as long
        return True
    if choice.get("token_ids") or logprobs.get("content"):
        return True
    if "".join(_text(delta[name], _PARTS) for name in _OUTPUT if delta.get(name)):
        return True
    calls = [each for each in delta.get("tool_calls") or () if each is not None]
    called = [call.get(kind) or {} for call in calls for kind in ("function", "custom")]
    called.append(delta.get("function_call") or {})
    return any(call.get(name) for call in called for name in ("name", "arguments", "input"))


def _text(content: Any, parts: tuple[str, ...]) -> str:
    """Return the text of a field: a string, or parts that have it in fields of these names."""
    if type(content) is str:
        return content
    if isinstance(content, list):
        return "".join(_text(part, parts) for part in content)
    if isinstance(content, dict):
        return "".join(_text(content.get(name), parts) for name in parts)
    if content is not None and not isinstance(content, str):
        raise TypeError("content")
    return content or ""


def _is_one_token(usage: object) -> bool:
    value = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return type(value) in {int, float} and value == 1


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
        record.server = _printable(role.partition("@")[2])


def _read_metrics(metrics: dict[str, Any] | None, record: RequestRecord) -> None:
    if metrics:
        record.server_queue_s = _seconds(metrics, "queue_time_ms")
        record.server_ttft_s = _seconds(metrics, "time_to_first_token_ms")


def _seconds(metrics: dict[str, Any], name: str) -> float | None:
    """Return a time (s) of the server's own metrics (ms); None where it tells none.

    Raises:
        _StreamError: It is no time.
    """
    value = metrics.get(name)
    if value is None:
        return None
    if type(value) not in {int, float} or not math.isfinite(value):
        raise _StreamError(records.MALFORMED, f"metrics: {name} is {_shown(value)}")
    return float(value) / 1e3
