"""What rows say of answers: which deltas are tokens, which streams are whole, and what of a usage is a count."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.client import wire
from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.load import records
from pytest_kvcache.load.answers import settle
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.table import read, to_frame

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
USAGE = {"prompt_tokens": 9, "completion_tokens": 2}


def event(**data: Any) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    """Return an event with one choice."""
    return event(choices=[{"delta": fields}])


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def row_of(
    *events: bytes,
    usage: Any = USAGE,
    end: bytes = b"data: [DONE]\n\n",
    head: bytes = HEAD,
    wrap: Callable[[bytes], bytes] = bytes,
) -> RequestRecord:
    """Return the row of an answer whose events arrive a second apart, the first at second 1."""
    last = event(choices=[], usage=usage)
    pieces = [(0.5, head), *((float(at), wrap(each)) for at, each in enumerate([*events, last, end], 1))]
    exchange = Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, pieces=pieces)
    record = RequestRecord(user=1, round=1, intended_start_s=0.0)
    settle(exchange, record, start_s=0.0)
    return record


OUTPUT: dict[str, dict[str, Any]] = {
    "content": {"content": "x"},
    "content in parts": {"content": [{"type": "text", "text": "x"}]},
    "reasoning": {"reasoning": "x"},
    "reasoning_content": {"reasoning_content": "x"},
    "reasoning beside empty content": {"reasoning": "x", "content": ""},
    "the name of a tool": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
    "arguments of a tool": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    "a second tool": {"tool_calls": [{"index": 0}, {"index": 1, "function": {"name": "g"}}]},
    "an older call": {"function_call": {"arguments": "{"}},
    "a refusal": {"refusal": "no"},
    "a custom tool": {"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": "f", "input": ""}}]},
    "input of a custom tool": {"tool_calls": [{"index": 0, "custom": {"input": "x"}}]},
    "arguments that are an object": {"tool_calls": [{"index": 0, "function": {"arguments": {"a": 1}}}]},
    "the name of an older call": {"function_call": {"name": "f"}},
    "what audio says": {"audio": {"id": "a", "transcript": "x"}},
    "audio": {"content": None, "audio": {"data": "UklGRg=="}},
    "thinking in parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]},
    "details of reasoning": {"reasoning_details": [{"type": "reasoning.text", "text": "x"}]},
    "a summary of reasoning": {"reasoning": "", "reasoning_details": [{"type": "reasoning.summary", "summary": "x"}]},
    "blocks of thinking": {"thinking_blocks": [{"type": "thinking", "thinking": "x"}]},
    "space": {"content": " "},
}
NOTHING: dict[str, dict[str, Any]] = {
    "a role": {"role": "assistant"},
    "a role and no text": {"role": "assistant", "content": ""},
    "nothing": {},
    "nulls": {"content": None, "reasoning": None, "tool_calls": None, "function_call": None, "refusal": None},
    "no tools": {"tool_calls": []},
    "a tool without words": {"tool_calls": [{"index": 0, "function": None}]},
    "a tool's id": {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": {"arguments": ""}}]},
    "no tool": {"tool_calls": [None]},
    "an empty call": {"function_call": {}},
    "the id of audio": {"audio": {"id": "a", "expires_at": 17}},
    "empty parts": {"content": [{"type": "text", "text": ""}], "reasoning_details": [], "thinking_blocks": None},
    "fields of others": {"annotations": [], "matched_stop": 7, "name": "x", "index": 0},
}


@pytest.mark.parametrize("name", OUTPUT)
def test_whatever_the_model_generated_is_a_token(name: str) -> None:
    """TTFT is that of the first output of any kind, and each delta with output has a stamp."""
    row = row_of(delta(role="assistant", content=""), delta(**OUTPUT[name]), delta(content="y"))
    assert (row.status, row.first_token_s, row.last_token_s) == (records.OK, 2.0, 3.0)
    assert row.token_times_s == [2.0, 3.0]


@pytest.mark.parametrize("name", NOTHING)
def test_what_was_not_generated_is_no_token(name: str) -> None:
    """Roles and empty fields have no stamp."""
    row = row_of(delta(**NOTHING[name]), delta(content="y"))
    assert (row.status, row.token_times_s) == (records.OK, [2.0])


@pytest.mark.parametrize(
    "more", [{"token_ids": [7]}, {"logprobs": {"content": [{"token": "", "logprob": -0.1, "top_logprobs": []}]}}]
)
def test_a_token_without_words_is_a_token(more: dict[str, Any]) -> None:
    """A token that a parser takes away is known by its id or its log-probability, where these were asked for."""
    row = row_of(event(choices=[{"delta": {"content": ""}, **more}]), delta(content="y"))
    assert row.token_times_s == [1.0, 2.0]
    none = {"token_ids": [], "logprobs": {"content": []}}
    assert row_of(event(choices=[{"delta": {}, **none}]), delta(content="y")).token_times_s == [2.0]


def finish(**fields: Any) -> bytes:
    """Return an event that ends a choice."""
    return event(choices=[{"delta": fields, "finish_reason": "length"}])


@pytest.mark.parametrize("last", [{}, {"content": ""}, {"content": None, "reasoning": None}])
def test_an_answer_of_one_token_without_words(last: dict[str, Any]) -> None:
    """The only token of an answer may be the mark that begins reasoning: it arrived when its answer was finished."""
    row = row_of(delta(role="assistant", content=""), finish(**last), usage=USAGE | {"completion_tokens": 1})
    assert (row.status, row.token_times_s, row.first_token_s, row.last_token_s) == (records.OK, [2.0], 2.0, 2.0)


def test_longer_answers_without_words_are_empty() -> None:
    """Of several tokens without words nobody knows when the first came; without a finish no token is made up."""
    assert row_of(finish()).status == records.EMPTY
    assert row_of(delta(role="assistant"), usage=USAGE | {"completion_tokens": 1}).status == records.EMPTY


def test_an_answer_of_one_token_with_words() -> None:
    """A token that comes with the end of its answer counts once."""
    row = row_of(finish(content="x"), usage=USAGE | {"completion_tokens": 1})
    assert (row.status, row.token_times_s, row.generated_tokens) == (records.OK, [1.0], 1)


@pytest.mark.parametrize(
    "odd",
    [
        b"data:\n\n",
        b"data: null\n\n",
        b": comment\n\n",
        event(choices=None),
        event(choices=[]),
        event(choices=[{"delta": None}]),
        event(choices=[{"index": 0}]),
        event(error=None, choices=[]),
        event(usage=None),
        event(metrics=None, usage=None, choices=None),
        event(id="x", object="chat.completion.chunk"),
        event(error="", choices=[]),
        event(choices=[{"delta": {}, "logprobs": None, "token_ids": None, "finish_reason": None}]),
        b"event: ping\ndata: 17\n\n",
        b"event: keep-alive\ndata: still here\n\n",
        b'event: ping\ndata: {"type": "ping"}\n\n',
    ],
)
def test_events_without_output_do_no_harm(odd: bytes) -> None:
    """Whatever a valid stream has beside its tokens leaves the answer as it is, wherever it stands."""
    assert row_of(odd, delta(content="x"), odd, delta(content="y"), odd).token_times_s == [2.0, 4.0]
    assert row_of(odd, delta(content="x"), odd).status == records.OK


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\r", b"data: [DONE]\n\n: bye\n\n"])
def test_every_end_of_a_stream(end: bytes) -> None:
    """The last event ends an answer with whatever line end it has, or none."""
    assert row_of(delta(content="x"), end=end).status == records.OK


@pytest.mark.parametrize("failed", [wire.CLOSED, wire.TIMED_OUT, wire.STALLED, wire.MALFORMED, wire.ENDED])
def test_nothing_after_the_last_event_fails_an_answer(failed: str) -> None:
    """What happens to a connection after the stream has ended is no failure of the request; before, it is one."""
    last = event(choices=[], usage=USAGE)
    for end, whole in ((b"data: [DONE]\n\n", True), (b"", False)):
        exchange = Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, failed=f"{failed}: x")
        exchange.pieces += [(0.5, HEAD), (1.0, delta(content="x")), (2.0, last + end)]
        record = RequestRecord(user=1, round=1, intended_start_s=0.0)
        settle(exchange, record, start_s=0.0)
        assert (record.status == records.OK) == whole


def test_text_that_is_not_utf_8() -> None:
    """A byte that is no UTF-8 is replaced, as the standard has it, and costs the answer nothing."""
    row = row_of(b'data: {"choices": [{"delta": {"content": "a\xff\xc3"}}]}\n\n', delta(content="y"))
    assert (row.status, row.token_times_s) == (records.OK, [1.0, 2.0])


BAD: list[object] = [None, 10.5, "9", -1, True, [], {}, 1e30, "nan"]


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "cached_tokens"])
def test_a_bad_usage_is_its_rows_status(name: str, value: Any) -> None:
    """A count that is none is named in the row, and the table of all rows can still be made."""
    usage: dict[str, Any] = dict(USAGE)
    if name == "cached_tokens":
        usage["prompt_tokens_details"] = {name: value}
    else:
        usage[name] = value
    row = row_of(delta(content="x"), usage=usage)
    if name == "cached_tokens" and value is None:
        assert (row.status, row.cached_tokens) == (records.OK, None)
    else:
        assert (row.status, row.error) == (records.MALFORMED, f"usage: {name} is {json.dumps(value)}")
    assert len(to_frame([row, row_of(delta(content="x"))])) == 2


@pytest.mark.parametrize(
    ("usage", "error"),
    [
        ({}, "usage: prompt_tokens is missing"),
        ({"prompt_tokens": 1}, "usage: completion_tokens is missing"),
        ("many", 'usage is "many"'),
        (USAGE | {"prompt_tokens_details": 7}, "usage.prompt_tokens_details is 7"),
        (USAGE | {"prompt_tokens_details": [1]}, "usage.prompt_tokens_details is [1]"),
        (USAGE | {"prompt_tokens_details": "x"}, 'usage.prompt_tokens_details is "x"'),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 10}}, "usage: cached_tokens is 10 of 9 prompt tokens"),
        (USAGE | {"completion_tokens": 0}, "usage: completion_tokens is 0 of an answer with output"),
        (USAGE | {"prompt_tokens": 0}, "usage: prompt_tokens is 0 of an answer with output"),
        (USAGE | {"prompt_tokens": math.nan}, "usage: prompt_tokens is NaN"),
        (USAGE | {"prompt_tokens": math.inf}, "usage: prompt_tokens is Infinity"),
        (USAGE | {"completion_tokens": 10**13}, "usage: completion_tokens is 10000000000000"),
        ([1], "usage is [1]"),
        (7, "usage is 7"),
        (False, "usage is false"),
        (None, "no usage in the stream"),
    ],
)
def test_a_usage_that_is_not_whole(usage: Any, error: str) -> None:
    """What lacks is named."""
    row = row_of(delta(content="x"), usage=usage)
    assert (row.status, row.error) == (records.MALFORMED, error)


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}, {"audio_tokens": 0}])
def test_a_usage_without_cached_tokens(details: Any) -> None:
    """A server that does not tell cached tokens has none in the row, and the answer is good."""
    row = row_of(delta(content="x"), usage=USAGE | {"prompt_tokens_details": details})
    assert (row.status, row.cached_tokens) == (records.OK, None)


@pytest.mark.parametrize("value", ["9", True, [], 10**400, math.nan, math.inf], ids=repr)
def test_times_of_the_server_that_are_none(value: Any) -> None:
    """A time of the server's own metrics that is no number is named in its row."""
    row = row_of(delta(content="x"), event(metrics={"queue_time_ms": value}))
    assert row.status == records.MALFORMED
    assert "metrics: queue_time_ms" in row.error or "OverflowError" in row.error


def test_the_last_usage_counts() -> None:
    """Of servers that tell the usage so far with every event, and not all counts of it, the last one is taken."""
    early = event(choices=[{"delta": {"content": "x"}}], usage={"prompt_tokens": 9, "completion_tokens": None})
    row = row_of(early, usage=USAGE | {"prompt_tokens": 9.0})
    assert (row.status, row.prompt_tokens, row.generated_tokens) == (records.OK, 9, 2)


@given(
    st.dictionaries(
        st.sampled_from(["choices", "usage", "metrics", "error", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["delta", "content", "function", "text", "prompt_tokens"]), inner, max_size=3
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_no_event_raises(data: dict[str, Any]) -> None:
    """Whatever JSON an event is, it has a status and words, and its row fits in the table."""
    row = row_of(event(**data), delta(content="x"))
    assert (row.status == records.OK) == (row.error == "")
    assert len(to_frame([row])) == 1


@pytest.mark.parametrize(
    "odd",
    [
        event(error="\ud83d engine\x1b[31m died\n"),
        event(choices=[{"delta": {"role": "assistant@\ud83d"}}]),
        event(object="error", message="\ud83d"),
        b"event: error\ndata: \xf0\x9f died\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: " + b'{"choices":' * 50_000 + b"\n\n",
        b"data: " + b"9" * 5000 + b"\n\n",
        b"data: \xff\n\n",
        b"data: \x00\n\n",
        event(choices=[{"delta": {"content": 5}}]),
        event(choices=[5]),
        event(choices={"delta": {}}),
        event(choices=[{"delta": "x"}]),
    ],
)
def test_no_row_is_lost_for_what_another_says(odd: bytes, tmp_path: Path) -> None:
    """Whatever a server writes, the rows can be kept in their file, and errors can be shown on a terminal."""
    rows = [row_of(odd, delta(content="x")), row_of(delta(content="x"))]
    records.save(rows, tmp_path / "rows.parquet")
    kept = read(tmp_path / "rows.parquet")
    assert list(kept["status"])[1] == records.OK
    assert all(text.isprintable() for text in (*kept["error"], *kept["server"]))


@pytest.mark.parametrize(
    ("head", "body", "status", "told"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
            b'{"object": "chat.completion"}',
            records.MALFORMED,
            ["no event stream: HTTP 200", "content-type: application/json", '{"object"'],
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n",
            b"<html>Sign in",
            records.MALFORMED,
            ["text/html", "<html>Sign in"],
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
            b"\x1f\x8b\x08\x00",
            records.MALFORMED,
            ["content-encoding: gzip", r"\x1f\x8b"],
        ),
        (
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://Elsewhere/v1\r\nContent-Length: 0\r\n\r\n",
            b"",
            records.HTTP_ERROR,
            ["HTTP 307", "location: https://Elsewhere/v1", "an empty body"],
        ),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n\r\n",
            b"<h1>502\n</h1>",
            records.HTTP_ERROR,
            ["HTTP 502: <h1>502\\n</h1>", "server: nginx"],
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"", records.MALFORMED, ["an empty body"]),
        (
            b"HTTP/1.1 302 Found\nLocation: /\x1b[31m\n\t/login\n\n",
            b"",
            records.HTTP_ERROR,
            [r"location: /\x1b[31m /login"],
        ),
        (
            b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\nRetry-After: 7\r\n\r\n",
            "\u202e{".encode() + b"\x00\xff" * 5000,
            records.HTTP_ERROR,
            ["HTTP 429", r"\u202e{\x00\xff", "application/problem+json", "retry-after: 7"],
        ),
    ],
)
def test_an_answer_that_is_no_stream(head: bytes, body: bytes, status: str, told: list[str]) -> None:
    """Status, content type, encoding, Location and the first bytes are named, on one line that can be shown."""
    exchange = Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, pieces=[(1.0, head + body)])
    row = RequestRecord(user=1, round=1, intended_start_s=0.0)
    settle(exchange, row, start_s=0.0)
    assert row.status == status
    assert all(words in row.error for words in told), row.error
    assert row.error.isprintable()
    assert len(row.error) < 1200


def test_a_page_that_never_ends_is_shown() -> None:
    """Of an answer that stood still and was no stream, what came of it is named."""
    exchange = Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, failed="stalled: nothing arrived for 9 s")
    exchange.pieces += [(1.0, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>wait")]
    row = RequestRecord(user=1, round=1, intended_start_s=0.0)
    settle(exchange, row, start_s=0.0)
    assert row.status == records.STALLED
    assert "nothing arrived for 9 s; the answer until then: HTTP 200: <html>wait (content-type: text/html)" in row.error


@pytest.mark.parametrize(
    "error",
    [
        event(error="engine died"),
        event(object="error", message="engine died", code=500),
        b"event: error\ndata: engine died\n\n",
        b'event: error\ndata: {"message": "engine died"}\n\n',
        b"event: error\n: engine died\n\n",
        b"event: error\n: engine died\ndata: {}\n\n",
        b'error: {"code": 500, "message": "engine died"}\n\n',
        b'event:error\ndata:{"error":"engine died","error_type":"generation"}\n\n',
        event(error={"code": 502, "message": "engine died"}, choices=[{"delta": {}, "finish_reason": "error"}]),
        event(choices=[{"delta": {"content": ""}, "error": {"message": "engine died"}}]),
    ],
)
def test_every_form_of_an_error_within_a_stream(error: bytes) -> None:
    """Servers tell of an error in a field, as an object, or as an event of that type."""
    row = row_of(delta(content="x"), error)
    assert (row.status, "engine died" in row.error) == (records.HTTP_ERROR, True)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("abort", records.HTTP_ERROR),
        ("error", records.HTTP_ERROR),
        ("length", records.OK),
        ("content_filter", records.OK),
        ({"type": "length"}, records.OK),
        ("", records.OK),
    ],
)
def test_an_answer_that_the_server_gave_up(reason: object, status: str) -> None:
    """A reason to finish that is a failure fails the request, whatever follows; others do not."""
    row = row_of(delta(content="x"), event(choices=[{"delta": {"content": ""}, "finish_reason": reason}]))
    assert (row.status, "finish_reason" in row.error) == (status, status == records.HTTP_ERROR)


@pytest.mark.parametrize(
    "said", [{"detail": "engine died"}, {"code": 500, "message": "engine died"}, {"errors": ["engine died"]}]
)
def test_what_a_server_says_beside_an_answer(said: dict[str, Any]) -> None:
    """An event that is no part of an answer explains why the answer is not whole, and harms none that is."""
    for row in (row_of(event(**said)), row_of(delta(content="x"), event(**said), end=b"")):
        assert row.status in {records.EMPTY, records.BROKEN}
        assert "engine died" in row.error
    assert row_of(delta(content="x"), event(**said)).status == records.OK


def test_an_error_within_a_stream() -> None:
    """An error that is one ends the request with its words, and one that is null does not."""
    row = row_of(delta(content="x"), event(error={"message": "engine died"}))
    assert (row.status, "engine died" in row.error) == (records.HTTP_ERROR, True)


FIRST, SECOND, ROLE = delta(content="a"), delta(content="b"), delta(role="assistant")
SHARED: dict[str, tuple[list[bytes], bool]] = {
    "each in a read of its own": ([FIRST, SECOND], False),
    "two in one read": ([FIRST + SECOND], True),
    "three in one read": ([FIRST + SECOND + SECOND], True),
    "the beginning of the second": ([FIRST + SECOND[:9], SECOND[9:]], True),
    "all but the end of the second": ([FIRST + SECOND[:-2], SECOND[-2:]], True),
    "a call of a tool": ([FIRST + delta(tool_calls=[{"function": {"name": "f"}}])], True),
    "something between them": ([FIRST + b": keep alive\n\n" + ROLE + SECOND], True),
    "behind the role": ([ROLE + FIRST, SECOND], False),
    "the end of the first": ([FIRST[:9], FIRST[9:] + SECOND], True),
    "the empty line of the first": ([FIRST[:-1], FIRST[-1:] + SECOND], False),
    "later ones": ([FIRST, SECOND + SECOND], False),
    "only what is no token": ([FIRST + ROLE + b": keep alive\n\n", SECOND], False),
}


@pytest.mark.parametrize(("reads", "shared"), SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_first_token_that_shares_its_read(reads: list[bytes], *, shared: bool, chunked: bool) -> None:
    """A row says when the read with its first token had a later one too, or the beginning of a later one."""
    if chunked:
        head = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        row = row_of(*reads, head=head, wrap=chunk)
    else:
        row = row_of(*reads)
    assert (row.status, row.first_token_shared) == ("ok", shared)
