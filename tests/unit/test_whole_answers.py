"""Whole answers as servers and proxies write them, from the first byte to the row, at every cut into reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pytest_kvcache.client import event_stream
from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.client.framing import Pieces, StreamedAnswer
from pytest_kvcache.load import records
from pytest_kvcache.load.answers import settle
from pytest_kvcache.load.records import RequestRecord

KIND = b"Content-Type: text/event-stream\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\n" + KIND + b"Transfer-Encoding: chunked\r\n\r\n"
TOKEN = b'{"choices":[{"delta":{"content":"hi"}}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}'
STREAM = b"data: " + TOKEN + b"\n\ndata: " + USAGE + b"\n\ndata: [DONE]\n\n"


def chunks(body: bytes, size: int = 50, *, form: bytes = b"%x\r\n%s\r\n", end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a body in chunks of a size."""
    return b"".join(form % (len(body[at : at + size]), body[at : at + size]) for at in range(0, len(body), size)) + end


def of_length(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    """Return an answer whose head has its length."""
    return head + KIND + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


#: Answers that are over with their last byte.
WHOLE = {
    "chunks": CHUNKED + chunks(STREAM),
    "chunks of a byte": CHUNKED + chunks(STREAM, 1),
    "sizes in capitals": CHUNKED + chunks(STREAM, form=b"%X\r\n%s\r\n"),
    "sizes with many zeros": CHUNKED + chunks(STREAM, form=b"%020x\r\n%s\r\n", end=b"00000000000000000000\r\n\r\n"),
    "an extension of each chunk": CHUNKED + chunks(STREAM, form=b'%x;n="a;b";m\r\n%s\r\n', end=b"0;last\r\n\r\n"),
    "space behind the size": CHUNKED + chunks(STREAM, form=b"%x \t\r\n%s\r\n", end=b"0 \r\n\r\n"),
    "trailers": CHUNKED + chunks(STREAM, end=b"0\r\nServer-Timing: gpu;dur=3\r\nX-Sum: 1\r\n\r\n"),
    "the coding in capitals": CHUNKED.replace(b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING:\tChunked")
    + chunks(STREAM),
    "a length beside the coding": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + chunks(STREAM),
    "go on": b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + chunks(STREAM),
    "hints, twice": b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" * 2 + CHUNKED + chunks(STREAM),
    "still at work": b"HTTP/1.1 102 Processing\r\nContent-Length: 99\r\n\r\n" + CHUNKED + chunks(STREAM),
    "a length": of_length(STREAM),
    "a length, told twice": of_length(STREAM).replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(STREAM), 1),
    "a head of line feeds": of_length(STREAM).replace(b"\r\n", b"\n"),
    "a head without a reason": of_length(STREAM).replace(b"200 OK", b"200"),
    "a folded field": of_length(STREAM).replace(b"event-stream\r\n", b"event-stream;\r\n charset=utf-8\r\n"),
    "a byte order mark in chunks of a byte": CHUNKED + chunks(b"\xef\xbb\xbf" + STREAM, 1),
    "CR LF in chunks of a byte": CHUNKED + chunks(STREAM.replace(b"\n", b"\r\n"), 1),
    "CR": CHUNKED + chunks(STREAM.replace(b"\n", b"\r")),
    "types, ids and waits": CHUNKED
    + chunks(b"retry: 3000\n\n: hello\n\nid: 1\nevent: message\n" + STREAM.replace(b"\n\n", b"\nid: 2\n\n: x\n\n")),
    "pings": CHUNKED + chunks(b"event: ping\ndata: 2026-11-29\n\n" + STREAM),
}
#: Answers that are over when the connection is.
UNTIL_IT_CLOSES = {
    "close": b"HTTP/1.1 200 OK\r\n" + KIND + b"Connection: close\r\n\r\n" + STREAM,
    "nothing of an end": b"HTTP/1.1 200 OK\r\n" + KIND + b"\r\n" + STREAM,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + KIND + b"\r\n" + STREAM,
    "no line behind the last event": b"HTTP/1.1 200 OK\r\n" + KIND + b"\r\n" + STREAM.rstrip(b"\n"),
}


def cuts(whole: bytes) -> Iterator[list[bytes]]:
    """Yield an answer in reads of one size, and in two reads at every byte."""
    for size in (1, 2, 3, 5, 64, len(whole)):
        yield [whole[at : at + size] for at in range(0, len(whole), size)]
    for at in range(1, len(whole)):
        yield [whole[:at], whole[at:]]


def row_of(pieces: Pieces) -> RequestRecord:
    """Return the row of an answer."""
    record = RequestRecord(user=1, round=1, intended_start_s=0.0)
    settle(Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, pieces=pieces), record, start_s=0.0)
    return record


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_is_over_with_its_last_byte(name: str) -> None:
    """However an answer is framed and cut, it is over at its last byte and not before, and its row is good."""
    for reads in cuts(WHOLE[name]):
        pieces: Pieces = []
        answer = StreamedAnswer(pieces)
        over = [answer.take(float(at), data) for at, data in enumerate(reads, 1)]
        assert over == [False] * (len(reads) - 1) + [True], reads
        row = row_of(pieces)
        assert (row.status, row.error, row.generated_tokens, len(row.token_times_s)) == (records.OK, "", 1, 1)


@pytest.mark.parametrize("name", UNTIL_IT_CLOSES)
def test_an_answer_that_ends_with_its_connection(name: str) -> None:
    """Without a length the close is the end, and the connection is not kept."""
    for reads in cuts(UNTIL_IT_CLOSES[name]):
        pieces: Pieces = []
        answer = StreamedAnswer(pieces)
        assert not any(answer.take(float(at), data) for at, data in enumerate(reads, 1))
        assert answer.may_end()
        assert answer.head is not None
        assert not answer.head.keeps
        assert row_of(pieces).status == records.OK


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000])
@pytest.mark.parametrize("form", ["plain", "chunks of a byte"])
def test_the_last_event_is_seen_however_it_is_cut(size: int, form: str) -> None:
    """A server may keep its connection open behind [DONE]: that it came is noticed with its last byte at the latest."""
    whole = UNTIL_IT_CLOSES["close"] if form == "plain" else CHUNKED + chunks(STREAM, 1, end=b"")
    pieces: Pieces = []
    noticed = []
    for at in range(0, len(whole), size):
        pieces.append((float(at), whole[at : at + size]))
        if event_stream.may_be_done(pieces, whole[at : at + size]):
            noticed.append(at)
    assert noticed
    assert len(noticed) <= 3  # each costs a look through the whole answer


def test_compressed_streams_are_named() -> None:
    """A gateway that compresses unasked is told of, with the field that says so."""
    body = b"\x1f\x8b\x08\x00\x00"
    (piece,) = [of_length(body).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1)]
    row = row_of([(1.0, piece)])
    assert row.status == records.MALFORMED
    assert "content-encoding: gzip" in row.error


ODD_USAGES = [
    {"prompt_tokens": "9", "completion_tokens": 1},
    {"prompt_tokens": [9], "completion_tokens": 1},
    {"prompt_tokens": 9, "completion_tokens": {"text": 1}},
    {"prompt_tokens": 9, "completion_tokens": -1},
    {"prompt_tokens": 9.5, "completion_tokens": 1},
    {"prompt_tokens": 1e300, "completion_tokens": 1},
    {"prompt_tokens": True, "completion_tokens": 1},
    {"prompt_tokens": float("nan"), "completion_tokens": 1},
    {"prompt_tokens": 9, "completion_tokens": float("inf")},
    {"completion_tokens": 1},
    {"input_tokens": 9, "output_tokens": 1},
    {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": [1]},
    {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 10}},
    {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "0"}},
    [],
    "9",
    9,
    True,
]


@pytest.mark.parametrize("usage", ODD_USAGES, ids=repr)
def test_an_odd_usage_fails_its_row_alone(usage: object) -> None:
    """A usage that is none, or cannot be right, is the row's status, in words on one line."""
    last = json.dumps({"choices": [], "usage": usage}).encode()
    row = row_of([(1.0, of_length(STREAM.replace(USAGE, last)))])
    assert row.status == records.MALFORMED
    assert "usage" in row.error
    assert row.error.isprintable()
