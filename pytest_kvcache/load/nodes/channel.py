"""An authenticated connection between the coordinator of a load and one of its nodes.

Both sides prove that they know the key (the challenges of `multiprocessing.connection`) before either of them reads
anything else. Then each message carries a code that follows from the key, from numbers that both sides chose for this
connection, and from its place in the order, so that nobody in between changes, repeats or adds one. Messages are not
encrypted: they hold prompts and times, and no secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from pytest_kvcache.errors import RunError

#: A side that does not prove itself within this is hung up on (s).
_HANDSHAKE_S = 10.0
_NONCE = 32
_CODE = hashlib.sha256().digest_size
_COUNT = struct.Struct("!Q")
#: No message before the handshake is over is longer than this (bytes).
_SMALL = 4096
#: A peer that acknowledges nothing for so long is gone (ms); then the connection is too.
_GONE_MS = 20_000


class ChannelClosedError(Exception):
    """The other side is gone, or something on the way changed what it said."""


@dataclass(frozen=True)
class Message:
    """One message.

    Args:
        kind: One letter.
        body: What it holds.
        at_ns: When it had arrived (CLOCK_MONOTONIC of this side).
    """

    kind: str
    body: bytes
    at_ns: int

    def json(self) -> Any:
        """Return the body as JSON values."""
        return json.loads(self.body)


class Channel:
    """Sends and receives messages, in order. Several threads may send, and one may receive.

    Args:
        sock: Connected; the channel owns it from now on.
        key: The secret that both sides know.
        calls: Whether this side opened the connection.

    Raises:
        RunError: The other side does not know the key, or says nothing that can be understood.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, calls: bool) -> None:
        self._sock = sock
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection = Connection(os.dup(sock.fileno()))
        self._sending = threading.Lock()
        self._sent = self._received = 0
        self._ours, self._theirs = (b"c", b"n") if calls else (b"n", b"c")
        try:
            self._limit_waits(_HANDSHAKE_S)
            self._key = self._agreed(key, calls=calls)
            self._limit_waits(0.0)
        except AuthenticationError:
            self.close()
            raise RunError("the two sides have different keys", todo="give both the same key") from None
        # Before Python 3.12 a challenge that is none is an AssertionError.
        except (OSError, EOFError, ValueError, AssertionError) as error:
            self.close()
            raise RunError(f"no load node answers there: {_words(error)}") from None

    def _agreed(self, key: bytes, *, calls: bool) -> bytes:
        """Have both sides prove themselves, and return the key of this connection's messages."""
        connection = self._connection
        if calls:
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
        else:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
        own = secrets.token_bytes(_NONCE)
        connection.send_bytes(own)
        other = connection.recv_bytes(_SMALL)
        both = own + other if calls else other + own
        return hmac.digest(key, b"pytest-kvcache load node" + both, hashlib.sha256)

    def send(self, kind: str, body: bytes = b"") -> int:
        """Send a message, and return the time just before it went to the kernel (ns, CLOCK_MONOTONIC).

        Raises:
            ChannelClosedError: The other side is gone.
        """
        with self._sending:
            said = kind.encode() + body
            code = self._code(self._ours, self._sent, said)
            self._sent += 1
            at_ns = time.monotonic_ns()
            try:
                self._connection.send_bytes(code + said)
            except (OSError, ValueError) as error:
                raise ChannelClosedError(_words(error)) from None
        return at_ns

    def send_json(self, kind: str, values: object) -> int:
        """Send a message of JSON values, as `send` does."""
        return self.send(kind, json.dumps(values).encode())

    def receive(self) -> Message:
        """Return the next message.

        Raises:
            ChannelClosedError: There is none, or it is not what the other side sent.
        """
        try:
            data = self._connection.recv_bytes()
        except (OSError, EOFError, ValueError) as error:
            raise ChannelClosedError(_words(error)) from None
        at_ns = time.monotonic_ns()
        code, said = data[:_CODE], data[_CODE:]
        expected = self._code(self._theirs, self._received, said)
        self._received += 1
        if not said or not hmac.compare_digest(code, expected):
            self.close()
            raise ChannelClosedError("a message was not the other side's")
        return Message(said[:1].decode("latin-1"), said[1:], at_ns)

    def await_end(self) -> None:
        """Read on until the other side has hung up, a few seconds at most.

        A side that closes with something unread resets the connection, and its own last words may be lost.
        """
        self._limit_waits(_HANDSHAKE_S)
        with contextlib.suppress(ChannelClosedError):
            while True:
                self.receive()

    def hang_up(self) -> None:
        """End the connection, also for a thread that waits in `receive`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free what it holds."""
        self.hang_up()
        self._connection.close()
        self._sock.close()

    def _code(self, side: bytes, number: int, said: bytes) -> bytes:
        code = hmac.new(self._key, side + _COUNT.pack(number), hashlib.sha256)
        code.update(said)
        return code.digest()

    def _limit_waits(self, seconds: float) -> None:
        limit = struct.pack("@ll", int(seconds), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, limit)


def _words(error: BaseException) -> str:
    if isinstance(error, BlockingIOError):
        return f"nothing came for {_HANDSHAKE_S:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection was closed" if isinstance(error, EOFError) else str(error) or type(error).__name__
