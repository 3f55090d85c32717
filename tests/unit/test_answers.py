"""What rows say of answers: which deltas are tokens, which streams are whole, and what of a usage is a count."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.load import records
from pytest_kvcache.load.answers import settle
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.table import to_frame

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
USAGE = {"prompt_tokens": 9, "completion_tokens": 2}


def event(**data: Any) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    """Return an event with one choice."""
    return event(choices=[{"delta": fields}])


def row_of(*events: bytes, usage: Any = USAGE, end: bytes = b"data: [DONE]\n\n", head: bytes = HEAD) -> RequestRecord:
    """Return the row of an answer whose events arrive a second apart, the first at second 1."""
    last = event(choices=[], usage=usage)
    pieces = [(0.5, head), *((float(at), each) for at, each in enumerate([*events, last, end], 1))]
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
}
NOTHING: dict[str, dict[str, Any]] = {
    "a role": {"role": "assistant"},
    "a role and no text": {"role": "assistant", "content": ""},
    "nothing": {},
    "nulls": {"content": None, "reasoning": None, "tool_calls": None, "function_call": None, "refusal": None},
    "no tools": {"tool_calls": []},
    "a tool without words": {"tool_calls": [{"index": 0, "function": None}]},
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
        (None, "no usage in the stream"),
    ],
)
def test_a_usage_that_is_not_whole(usage: Any, error: str) -> None:
    """What lacks is named."""
    row = row_of(delta(content="x"), usage=usage)
    assert (row.status, row.error) == (records.MALFORMED, error)


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


def test_an_error_within_a_stream() -> None:
    """An error that is one ends the request with its words, and one that is null does not."""
    row = row_of(delta(content="x"), event(error={"message": "engine died"}))
    assert (row.status, "engine died" in row.error) == (records.HTTP_ERROR, True)
