"""Server-sent events in the body of an answer, each with its arrival."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pytest_kvcache.client.framing import Pieces, body_pieces

#: The last event of a stream of the OpenAI API.
DONE = b"[DONE]"
#: The last event has not more bytes than this, also where each of them is a chunk of its own.
_GLANCED = 64
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


def events(pieces: Pieces) -> Iterator[tuple[float, bytes]]:
    """Yield the data of each server-sent event, with its arrival (s); `typed_events` says how they are read.

    Raises:
        ValueError: The framing is broken.
    """
    return ((event.arrived_s, event.data) for event in typed_events(pieces))


def may_be_done(pieces: Pieces, data: bytes) -> bool:
    """Return whether the last event may have come with `data`, the newest of `pieces`; mostly told at a glance."""
    if DONE in data:
        return True
    last = data[-_GLANCED:]
    if DONE[-1:] not in last:
        return False
    if len(data) < _GLANCED:
        # It may have come in many small pieces, with the framing of chunks between its bytes.
        last = b"".join(piece for _, piece in pieces[-_GLANCED:])[-_GLANCED:]
    return all(byte in last for byte in DONE)


class Event(NamedTuple):
    """A server-sent event. Times are those of the pieces of the answer (s).

    Args:
        began_s: When the piece came that has the first byte of its first line of data.
        arrived_s: When the end of its last line of data came.
        kind: Its type, empty for a message.
        data: Its data.
    """

    began_s: float
    arrived_s: float
    kind: bytes
    data: bytes


class _Line(NamedTuple):
    began_s: float
    ended_s: float
    text: bytes


def typed_events(pieces: Pieces) -> Iterator[Event]:
    """Yield each server-sent event.

    By the rules for event streams of the HTML standard (WHATWG, "Server-sent events", 9.2.5 and 9.2.6): lines end in CR
    LF, LF or CR; a byte order mark may begin the stream; lines of data are joined by LF; comments and fields other than
    `event` and `data` mean nothing here. Some things that servers do are taken too: a stream that ends in `[DONE]`
    without a further line, events without an empty line between them, where each line of data is one whole object, any
    space around data, and errors in a field `error` (llama.cpp until 2025) or in the comment of an event of that type
    (Dynamo). Events without data are left out.

    An event arrived when the end of its last line of data did, also where that end is a CR whose LF came in a later
    piece, or where the empty line came later.

    Raises:
        ValueError: The framing is broken.
    """
    data: list[_Line] = []
    kind = b""
    for line in _lines(pieces):
        if not line.text:
            yield from _dispatched(kind, data)
            data, kind = [], b""
        name, _, value = line.text.partition(b":")
        if name == b"error":
            kind = name
        if name == b"data" or (kind == b"error" and name in {b"", b"error"} and value):
            data.append(line._replace(text=value.strip()))
        elif name == b"event":
            kind = value.removeprefix(b" ")
    # What has no empty line behind it was cut off, but for the end of the stream and for objects that stand alone.
    if data and (data[-1].text == DONE or (len(data) > 1 and _are_whole(data))):
        yield from _dispatched(kind, data)


def _dispatched(kind: bytes, data: list[_Line]) -> Iterator[Event]:
    kind = b"" if kind == b"message" else kind
    if len(data) > 1 and _are_whole(data):
        for line in data:
            yield Event(line.began_s, line.ended_s, kind, line.text)
    elif text := b"\n".join(line.text for line in data).strip():
        yield Event(data[0].began_s, data[-1].ended_s, kind, text)


def _are_whole(data: list[_Line]) -> bool:
    """Return whether each line is an object of its own: parts of one would have a comma or a colon between them."""
    return all(text == DONE or (text[:1] == b"{" and text[-1:] == b"}") for _, _, text in data)


def _lines(pieces: Pieces) -> Iterator[_Line]:
    """Yield each line of the body without its end, with the arrival of that end (s); then what has no end."""
    rest, began, at, after_cr, first = b"", 0.0, 0.0, False, True
    for at, piece in body_pieces(pieces):
        fresh = piece[1:] if after_cr and piece[:1] == b"\n" else piece
        after_cr = piece[-1:] == b"\r"
        if not rest:
            began = at
        *whole, rest = _LINE_END.split(rest + fresh)
        for line in whole:
            yield _Line(began, at, line.removeprefix(_BOM) if first else line)
            first, began = False, at
    if rest:
        yield _Line(began, at, rest.removeprefix(_BOM) if first else rest)
