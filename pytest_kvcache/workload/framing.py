"""HTTP/1.1 and server-sent events, as far as a streamed answer needs them: pieces to events, each with its arrival."""

from __future__ import annotations

from collections.abc import Iterator

Pieces = list[tuple[float, bytes]]


def request(host: str, path: str, body: bytes) -> bytes:
    """Return a whole POST request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def status(pieces: Pieces) -> int:
    """Return the response's HTTP status, 0 where its first line did not arrive."""
    line = b"".join(piece for _, piece in pieces[:3]).split(b"\r\n", 1)[0].split()
    return int(line[1]) if len(line) > 1 and line[0].startswith(b"HTTP/") and line[1].isdigit() else 0


def is_whole(pieces: Pieces) -> bool:
    """Return whether a chunked response has its last chunk."""
    _, mark, body = b"".join(piece for _, piece in pieces).partition(b"\r\n\r\n")
    if not mark:
        return False
    at = 0
    while True:
        line = body.find(b"\r\n", at)
        if line < 0:
            return False
        try:
            size = int(body[at:line].split(b";", 1)[0], 16)
        except ValueError:
            return True  # not chunked after all: decoding will say so
        if size == 0:
            return True
        at = line + 2 + size + 2


def body_pieces(pieces: Pieces) -> Iterator[tuple[float, bytes]]:  # noqa: PLR0912 - a branch for each state of the framing
    """Yield the response's body piece by piece, freed of head and chunk framing, each with its arrival.

    Raises:
        ValueError: The framing is broken.
    """
    rest, in_head, chunked, left = b"", True, False, 0
    for at, piece in pieces:
        rest += piece
        if in_head:
            head, mark, rest_after = rest.partition(b"\r\n\r\n")
            if not mark:
                continue
            in_head, rest = False, rest_after
            chunked = b"transfer-encoding: chunked" in head.lower()
        if not chunked:
            if rest:
                yield at, rest
            rest = b""
            continue
        out = []
        while rest:
            if left > 2:
                out.append(rest[: left - 2])
                taken = min(len(rest), left - 2)
                rest, left = rest[taken:], left - taken
            elif left:
                taken = min(len(rest), left)
                rest, left = rest[taken:], left - taken
            else:
                line, mark, after = rest.partition(b"\r\n")
                if not mark:
                    break
                size = int(line.split(b";", 1)[0], 16)
                if size == 0:  # the last chunk: what follows is the end of the framing, cut or whole
                    if out:
                        yield at, b"".join(out)
                    return
                rest, left = after, size + 2
        if out:
            yield at, b"".join(out)


def events(pieces: Pieces) -> Iterator[tuple[float, bytes]]:
    """Yield the data of each server-sent event with the arrival of its last byte.

    Raises:
        ValueError: The framing is broken.
    """
    rest = b""
    for at, piece in body_pieces(pieces):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at, line[5:].strip()
