"""HTTP/1.1 as far as a client of streams needs it: requests, heads of answers, and bodies without their framing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

#: Received data in order, each piece with its arrival (s, CLOCK_MONOTONIC).
Pieces = list[tuple[float, bytes]]

#: A longer head, or a longer line of chunk framing, is taken for something that is not HTTP.
HEAD_MAX_BYTES = 64 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] +(\d{3})(?: .*)?", re.DOTALL)
_SIZE = re.compile(rb"0*[0-9a-fA-F]{1,15}")
_LENGTH = re.compile(rb"\d{1,18}")
#: A head's lines may end in LF alone, and so may the head (RFC 9112, 2.2).
_HEAD_LINE_END, _HEAD_END = re.compile(rb"\r?\n"), re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")


def request(host: str, path: str, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return a whole POST request with a JSON body."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Head:
    """What a response's head says about the rest of the response.

    Args:
        status: HTTP status.
        size: Bytes of the head, the empty line included.
        chunked: Whether the body comes in chunks.
        length: Bytes of the body; None where it is chunked, or ends when the connection does.
        keeps: Whether the connection may be used again.
        fields: Header fields by name in small letters; the values of a repeated field are joined by commas.
    """

    status: int
    size: int
    chunked: bool
    length: int | None
    keeps: bool
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The fields that a person needs to know of an answer that is not what was asked for."""
        named = ("content-type", "content-encoding", "location", "retry-after", "server")
        return ", ".join(f"{name}: {self.fields[name][:200]}" for name in named if name in self.fields)


def read_head(text: bytes) -> Head | None:
    """Return the head that `text` begins with, None where its end has not arrived.

    By RFC 9112 (2.2, 4, 5 and 6): lines may end in LF alone, a folded value is one value, a repeated field has the
    values of all, a body is chunked whatever Content-Length says, and equal values of Content-Length are one.

    Raises:
        ValueError: `text` does not begin with an HTTP head, or the head is longer than `HEAD_MAX_BYTES`.
    """
    if not text.startswith(b"HTTP/1."[: len(text)]):
        raise ValueError(f"an answer that begins with {text[:40]!r}")
    end = _HEAD_END.search(text, 0, HEAD_MAX_BYTES)
    if end is None:
        if len(text) >= HEAD_MAX_BYTES:
            raise ValueError(f"a head of over {HEAD_MAX_BYTES} bytes")
        return None
    first, *lines = _HEAD_LINE_END.split(_FOLD.sub(b" ", text[: end.start()]))
    found = _STATUS_LINE.fullmatch(first)
    if found is None:
        raise ValueError(f"status line {first[:80]!r}")
    status = int(found[1])
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, mark, value = line.partition(b":")
        if not mark:
            raise ValueError(f"header line {line[:80]!r}")
        name, value = name.strip().lower(), value.strip()
        fields[name] = fields[name] + b", " + value if name in fields else value
    chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
    length = None
    if status < 200 or status in {204, 304}:
        chunked, length = False, 0
    elif not chunked and b"content-length" in fields:
        values = {each.strip() for each in fields[b"content-length"].split(b",")}
        value = values.pop()
        if values or not _LENGTH.fullmatch(value):
            raise ValueError(f"Content-Length {fields[b'content-length'][:40]!r}")
        length = int(value)
    connection = fields.get(b"connection", b"keep-alive" if first.startswith(b"HTTP/1.1") else b"close").lower()
    keeps = b"close" not in connection and (chunked or length is not None)
    told = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()}
    return Head(status, end.end(), chunked, length, keeps, told)


def _chunk_size(line: bytes) -> int:
    text = line.split(b";", 1)[0].strip()
    if not _SIZE.fullmatch(text):
        raise ValueError(f"chunk size {line[:40]!r}")
    return int(text, 16)


class StreamedAnswer:
    """Follows an answer while it arrives and knows when it is over.

    Args:
        pieces: The list to which `take` adds what arrives; interim responses (1xx) are taken out of it.
    """

    __slots__ = ("_arrived", "_last", "_left", "_pieces", "_rest", "_walked", "head")

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.head: Head | None = None
        self._arrived = 0
        # State of the chunk framing: number of pieces walked through, bytes that are not parsed yet, number of bytes to
        # skip, and whether the last chunk was read.
        self._walked, self._rest, self._left, self._last = 0, b"", 0, False

    def take(self, at: float, data: bytes) -> bool:
        """Add `data`, which arrived at `at` (s); return whether the answer is over.

        Raises:
            ValueError: The answer is not HTTP.
        """
        self._pieces.append((at, data))
        self._arrived += len(data)
        head = self.head
        if head is None:
            head = self._read_head()
            if head is None:
                return False
        elif head.chunked and len(data) >= 4 and data[-4:] != b"\r\n\r\n":
            return False  # a chunked body ends in an empty line: the framing is walked through only after one
        if head.chunked:
            return self._walk()
        return head.length is not None and self._arrived >= head.size + head.length

    def may_end(self) -> bool:
        """Return whether the answer is whole if the connection is closed now."""
        if self.head is None:
            return False
        if self.head.chunked:
            return self._walk()
        return self.head.length is None or self._arrived >= self.head.size + self.head.length

    def _read_head(self) -> Head | None:
        at = self._pieces[-1][0]
        text = self._pieces[0][1] if len(self._pieces) == 1 else b"".join(data for _, data in self._pieces)
        head = read_head(text)
        while head is not None and head.status < 200:
            text = text[head.size :]
            self._pieces[:] = [(at, text)] if text else []
            self._arrived = len(text)
            head = read_head(text)
        if head is not None:
            self.head, self._rest, self._walked = head, text[head.size :], len(self._pieces)
        return head

    def _walk(self) -> bool:
        text = self._rest + b"".join(data for _, data in self._pieces[self._walked :])
        self._walked = len(self._pieces)
        at = 0
        while True:
            skipped = min(self._left, len(text) - at)
            at, self._left = at + skipped, self._left - skipped
            end = text.find(b"\r\n", at, at + HEAD_MAX_BYTES)
            if self._left or end < 0:
                break
            if self._last:  # trailers, then an empty line
                if end == at:
                    return True
            else:
                size = _chunk_size(text[at:end])
                self._last, self._left = size == 0, size + 2 if size else 0
            at = end + 2
        self._rest = text[at:]
        if len(self._rest) >= HEAD_MAX_BYTES:
            raise ValueError(f"chunk size {self._rest[:40]!r}")
        return False


def head_of(pieces: Pieces) -> Head | None:
    """Return the response's head, None where its end did not arrive.

    Raises:
        ValueError: It is no HTTP.
    """
    text = b""
    for _, piece in pieces:
        text += piece
        head = read_head(text)
        if head is not None:
            return head
    return None


def body_pieces(pieces: Pieces) -> Iterator[tuple[float, bytes]]:  # noqa: PLR0912 - a branch for each state of the framing
    """Yield the response's body without head and chunk framing, piece by piece, each piece with its arrival (s).

    Raises:
        ValueError: The framing is broken.
    """
    rest, in_head, chunked, left = b"", True, False, 0
    length: int | None = None
    for at, piece in pieces:
        rest += piece
        if in_head:
            head = read_head(rest)
            if head is None:
                continue
            rest = rest[head.size :]
            in_head, chunked, length = False, head.chunked, head.length
        if not chunked:
            body, rest = rest[:length], b""  # what comes after the length is no part of the answer
            if length is not None:
                length -= len(body)
            if body:
                yield at, body
            continue
        out = []
        while rest:
            if left > 2:
                out.append(rest[: left - 2])
                taken = min(len(rest), left - 2)
                rest, left = rest[taken:], left - taken
            elif left:
                taken = min(len(rest), left)
                if rest[:taken] != b"\r\n"[2 - left :][:taken]:
                    raise ValueError(f"{rest[:40]!r} where a chunk ends: its chunk size is wrong")
                rest, left = rest[taken:], left - taken
            else:
                line, mark, after = rest.partition(b"\r\n")
                if not mark:
                    break
                size = _chunk_size(line)
                if size == 0:  # the last chunk: what follows is the end of the framing, cut or whole
                    if out:
                        yield at, b"".join(out)
                    return
                rest, left = after, size + 2
        if out:
            yield at, b"".join(out)
