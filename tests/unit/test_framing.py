"""How an answer's bytes are read: heads and bodies by RFC 9112, event streams by the HTML standard, with stamps."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_kvcache.client import event_stream, framing
from pytest_kvcache.client.framing import Pieces, StreamedAnswer

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return `data` as a chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def cut(whole: bytes, cuts: list[int]) -> Pieces:
    """Return `whole` in pieces that end before these bytes; each is stamped by the number of its last byte."""
    ends = [*sorted(cuts), len(whole)]
    return [(float(b - 1), whole[a:b]) for a, b in zip([0, *ends], ends, strict=False) if b > a]


#: Streams by the rules of the HTML standard (WHATWG, 9.2.5 and 9.2.6), and what servers do beyond them.
STREAMS = {
    "LF": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "CR LF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "CR": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "ends that differ": (b"data: a\r\n\ndata: b\r\r\ndata: c\n\r", [b"a", b"b", b"c"]),
    "no space after the colon": (b"data:a\n\n", [b"a"]),
    "more space": (b"data:   a \t\n\n", [b"a"]),
    "a comment": (b": keep-alive\n\ndata: a\n: more\n\n:\n\n", [b"a"]),
    "no data": (b"data\n\ndata:\n\ndata: \n\ndata: a\n\n", [b"a"]),
    "data in lines": (b'data: {"a":\ndata: 1}\n\n', [b'{"a":\n1}']),
    "data in lines, the last empty": (b"data: a\ndata:\n\n", [b"a"]),
    "objects in lines": (
        b'data: {"a": [\ndata: {"b": 1},\ndata: {"c": 2}\ndata: ]}\n\n',
        [b'{"a": [\n{"b": 1},\n{"c": 2}\n]}'],
    ),
    "other fields": (b"event: message\nid: 7\nretry: 10\ndata: a\nx: y\n\n", [b"a"]),
    "fields that begin alike": (b"database: x\ndata : y\n data: z\nDATA: w\n\ndata: a\n\n", [b"a"]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "a byte order mark, and a comment": (b"\xef\xbb\xbf: hello\n\ndata: a\n\n", [b"a"]),
    "a second byte order mark": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "empty lines": (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
    "cut within an event": (b"data: a\n\ndata: b", [b"a"]),
    "cut before the empty line": (b"data: a\n\ndata: b\n", [b"a"]),
    "done without a line": (b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"]),
    "done with one line": (b"data: a\n\ndata: [DONE]\n", [b"a", b"[DONE]"]),
    "no empty lines": (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [b'{"a":1}', b'{"b":2}', b"[DONE]"]),
    "no empty lines, and one at the end": (b'data: {"a":1}\ndata: [DONE]\n\n', [b'{"a":1}', b"[DONE]"]),
    "another type of event": (b"event: ping\ndata: 1\n\ndata: a\n\n", [b"1", b"a"]),
    "an id alone": (b"id: 1\n\nretry: 5\n\nevent: x\n\ndata: a\n\n", [b"a"]),
    "a line without end, then nothing": (b"data: a\n\n: bye", [b"a"]),
    "bytes that are no line ends": (
        b"data: a\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8b\n\n",
        [b"a\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8b"],
    ),
    "half a byte order mark": (b"\xef\xbbdata: x\n\ndata: a\n\n", [b"a"]),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\ndata: a\n\n", [b"a"]),
    "a line end within CR LF": (b"data: a\r\n\r\n\r\ndata: b\r\n\n", [b"a", b"b"]),
    "a colon in the data": (b"data: a: b\n\n", [b"a: b"]),
    "no end of line at all": (b"", []),
}


@pytest.mark.parametrize("framed", [True, False], ids=["chunked", "until it closes"])
@pytest.mark.parametrize("name", STREAMS)
def test_event_streams_follow_the_standard(name: str, framed: bool) -> None:
    """Each rule of event streams holds, at whatever byte the stream is cut into pieces."""
    body, expected = STREAMS[name]
    head = HEAD if framed else b"HTTP/1.1 200 OK\r\n\r\n"
    whole = head + (chunk(body) + b"0\r\n\r\n" if framed and body else body)
    for size in (1, 2, 3, 7, len(whole)):
        pieces = [(float(at), whole[at : at + size]) for at in range(0, len(whole), size)]
        assert [event for _, event in event_stream.events(pieces)] == expected
    for cut in range(1, len(whole)):
        pieces = [(1.0, whole[:cut]), (2.0, whole[cut:])]
        assert [event for _, event in event_stream.events(pieces)] == expected


def test_events_without_empty_lines_keep_their_stamps() -> None:
    """Where nothing but its line ends an event, its stamp is that of the line."""
    pieces = [
        (1.0, HEAD + chunk(b'data: {"a":1}\n')),
        (2.0, chunk(b'data: {"b":1}\n')),
        (3.0, chunk(b"data: [DONE]\n")),
    ]
    assert [at for at, _ in event_stream.events(pieces)] == [1.0, 2.0, 3.0]


OBJECT = b'data: {"c":1}'
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
lines = st.sampled_from(
    [
        b"",
        b"",
        b"data: a",
        b"data:b",
        OBJECT,
        b"data",
        b"data:",
        b": note",
        b"id: 7",
        b"event: x",
        b"datax: 1",
    ]
) | st.binary(max_size=8).map(lambda text: re.sub(rb"[\r\n]", b"", text))


def expected(body: list[tuple[bytes, bytes]]) -> list[tuple[int, bytes]]:
    """Return the events of a stream, each with the number of the byte that ends its last line of data.

    By the standard's text, on lines that are split already; what this client takes beyond it is left out.
    """
    found: list[tuple[int, bytes]] = []
    data: list[bytes] = []
    at = last = 0
    for number, (line, end) in enumerate(body):
        if not line:
            if text := b"\n".join(data).strip():
                found.append((last, text))
            data = []
        name, _, value = line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").partition(b":")
        if name == b"data":
            data.append(value.strip())
            last = at + len(line)
        at += len(line) + len(end)
    return found


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(lines, line_ends), max_size=12), st.booleans(), st.data())
def test_events_and_stamps_at_every_cut(body: list[tuple[bytes, bytes]], chunked: bool, data: st.DataObject) -> None:
    """However a stream is cut into chunks and reads, an event's stamp is that of the read that ended its data line."""
    # CR and LF would be one line end and not two.
    assume(not any(a[1] == b"\r" and b == (b"", b"\n") for a, b in itertools.pairwise(body)))
    text = b"".join(line + end for line, end in body)
    events = expected(body)
    # Objects in the lines of one event are events of their own here.
    assume(sum(line == OBJECT for line, _ in body) < 2)
    where: list[int] = []
    if chunked:
        sizes = data.draw(st.lists(st.integers(1, 9), max_size=20))
        whole, at = HEAD, 0
        for size in [*sizes, len(text)]:
            piece = text[at : at + size]
            if piece:
                coded = chunk(piece)
                first = len(whole) + coded.index(b"\r\n") + 2
                where += range(first, first + len(piece))
                whole += coded
            at += size
        whole += b"0\r\n\r\n"
    else:
        whole = b"HTTP/1.1 200 OK\r\n\r\n"
        where += range(len(whole), len(whole) + len(text))
        whole += text
    pieces = cut(whole, data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=12, unique=True)))
    read_of = [next(at for at, _ in pieces if at >= where[byte]) for byte, _ in events]
    assert list(event_stream.events(pieces)) == [(at, event) for at, (_, event) in zip(read_of, events, strict=True)]


def test_the_type_of_an_event() -> None:
    """A type holds for one event, and `message` is that of an event without one."""
    stream = b"event: error\ndata: a\n\ndata: b\n\nevent:message\ndata: c\n\n"
    stream += b"event: x\nevent: y\ndata: d\n\nevent: z\n\ndata: e\n\n"
    pieces = [(0.0, b"HTTP/1.1 200 OK\r\n\r\n" + stream)]
    found = [(event.kind, event.data) for event in event_stream.typed_events(pieces)]
    assert found == [(b"error", b"a"), (b"", b"b"), (b"", b"c"), (b"y", b"d"), (b"", b"e")]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_status_line_in_small_pieces(size: int) -> None:
    """However slowly a head trickles in, its status is the one that it says."""
    whole = b"HTTP/1.1 404 Not Found\r\nLocation: /X\r\nContent-Length: 2\r\n\r\nno"
    pieces = [(0.0, whole[at : at + size]) for at in range(0, len(whole), size)]
    head = framing.head_of(pieces)
    assert head is not None
    assert (head.status, head.fields["location"], head.length) == (404, "/X", 2)


#: Heads by RFC 9112 and RFC 9110: status, whether chunked, length, whether the connection stays, and fields.
HEADS = {
    "no length": (b"HTTP/1.1 200 OK\r\n\r\n", 200, False, None, False, {}),
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, False, 5, True, {}),
    "no reason": (b"HTTP/1.1 503\r\nContent-Length:0\r\n\r\n", 503, False, 0, True, {}),
    "an empty reason": (b"HTTP/1.1 503 \r\nContent-Length:0\r\n\r\n", 503, False, 0, True, {}),
    "a reason beyond ASCII": (b"HTTP/1.1 404 Non trouv\xe9\r\nContent-Length: 0\r\n\r\n", 404, False, 0, True, {}),
    "1.0 closes": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 200, False, 5, False, {}),
    "1.0 that stays": (
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\n", 200, False, 5, True, {},
    ),
    "it closes": (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 5\r\n\r\n", 200, False, 5, False, {}),
    "it closes, said last": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x\r\nConnection: close\r\n\r\n", 200, False, 5, False, {},
    ),
    "chunked": (b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING:  Chunked \r\n\r\n", 200, True, None, True, {}),
    "chunked beside a length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 200, True, None, True, {},
    ),
    "chunked, in two fields": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n", 200, True, None, True, {},
    ),
    "equal lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 200, False, 5, True, {}),
    "equal lengths in one field": (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", 200, False, 5, True, {}),
    "no content": (b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", 204, False, 0, True, {}),
    "LF alone": (b"HTTP/1.1 200 OK\nContent-Length: 5\nServer: x\n\n", 200, False, 5, True, {"server": "x"}),
    "a folded value": (
        b"HTTP/1.1 200 OK\r\nServer: a\r\n  b\r\n\tc\r\nContent-Length: 5\r\n\r\n",
        200, False, 5, True, {"server": "a b c"},
    ),
    "a repeated field": (
        b"HTTP/1.1 200 OK\r\nVia: a\r\nVia: b\r\nContent-Length: 5\r\n\r\n", 200, False, 5, True, {"via": "a, b"},
    ),
    "an empty value": (b"HTTP/1.1 200 OK\r\nServer:\r\nContent-Length: 5\r\n\r\n", 200, False, 5, True, {"server": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_follow_the_rfc(name: str) -> None:
    """Each rule of heads holds, at whatever byte the head is cut, and its end is not taken too early."""
    whole, status, chunked, length, keeps, fields = HEADS[name]
    for at in range(len(whole)):
        assert framing.read_head(whole[:at]) is None
    for pieces in ([(0.0, whole[:at]), (1.0, whole[at:] + b"body")] for at in range(1, len(whole))):
        head = framing.head_of(pieces)
        assert head is not None
        assert (head.status, head.chunked, head.length, head.keeps) == (status, chunked, length, keeps)
        assert (head.size, fields.items() <= head.fields.items()) == (len(whole), True)


@pytest.mark.parametrize(
    "whole",
    [
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x50",
        b"<html>",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_heads_that_are_none(whole: bytes) -> None:
    """What is no head of HTTP/1.1 is refused as soon as that is sure."""
    with pytest.raises(ValueError, match=r"."):
        framing.read_head(whole)


#: Bodies, and what is in them. All have their end within, so that an answer with them is over.
BODIES = {
    "chunks": (HEAD, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "sizes in capitals, with zeros": (HEAD, b"00A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "extensions of chunks": (HEAD, b"3;a=b;c\r\nabc\r\n0;x\r\n\r\n", b"abc"),
    "space after a size": (HEAD, b"3 \r\nabc\r\n0\r\n\r\n", b"abc"),
    "line ends within a chunk": (HEAD, b"6\r\na\r\n0\r\n\r\n0\r\n\r\n", b"a\r\n0\r\n"),
    "trailers": (HEAD, b"3\r\nabc\r\n0\r\nX: y\r\nZ: 0\r\n\r\n", b"abc"),
    "a last chunk of several zeros": (HEAD, b"3\r\nabc\r\n000\r\n\r\n", b"abc"),
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"abcde", b"abcde"),
    "a length of nothing": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", b""),
    "more than the length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"abcdeXYZ", b"abcde"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_follow_the_rfc(name: str) -> None:
    """Each rule of bodies holds at every cut, and the answer is over with the last byte of its framing, not before."""
    head, framed, body = BODIES[name]
    whole = head + framed
    ends = len(whole) - len(b"XYZ" if name == "more than the length" else b"")
    for at in range(1, len(whole)):
        pieces = [(0.0, whole[:at]), (1.0, whole[at:])]
        assert b"".join(data for _, data in framing.body_pieces(pieces)) == body
        answer = StreamedAnswer([])
        assert answer.take(0.0, whole[:at]) == (at >= ends)
        assert at >= ends or answer.take(1.0, whole[at:])
    byte_by_byte = StreamedAnswer([])
    over = [byte_by_byte.take(float(at), whole[at : at + 1]) for at in range(ends)]
    assert over == [False] * (ends - 1) + [True]


@pytest.mark.parametrize("framed", [b"x\r\nabc\r\n", b"-1\r\n", b"3\r\nabcXX2\r\n\r\n", b"\r\n\r\n", b"0x3\r\nabc\r\n"])
def test_chunks_that_are_none(framed: bytes) -> None:
    """A body whose chunks have no sizes is refused, and not taken for an answer that was cut off."""
    with pytest.raises(ValueError, match="chunk size"):
        list(framing.body_pieces([(0.0, HEAD + framed)]))
