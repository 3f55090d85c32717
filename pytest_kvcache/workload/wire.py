"""HTTP/1.1 over raw sockets: requests leave at absolute times, arrivals carry the kernel's stamp.

What a Python client reads as TTFT is the arrival plus the time until its event loop came around to the socket. Here the
kernel says when the bytes arrived (SO_TIMESTAMPING, Documentation/networking/timestamping.rst), so that a busy loop
delays no stamp by more than until the next segment of the same stream: a read returns the stamp of the last segment it
holds. Sending is woken by a timerfd, to the microsecond, from connections that were opened before; the stamp of a send
is taken once the last byte is with the kernel. Responses are kept as they arrive and decoded by whoever asked.

One thread, epoll, no locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import gc
import heapq
import itertools
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_kvcache.workload.framing import Pieces, is_whole

_SO_TIMESTAMPING = 37
_RX_SOFTWARE, _SOFTWARE = 1 << 3, 1 << 4
_STAMP = struct.Struct("@qq")
_ANCILLARY = socket.CMSG_SPACE(3 * _STAMP.size)
_READ = 1 << 16
_TIMERSPEC = struct.Struct("@qqqq")
_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1
#: Connections are opened this long before they are needed (s).
_OPEN_AHEAD_S = 0.05
_BATCH = 32
_LAST_CHUNK = b"0\r\n\r\n"
#: A stamp older than this (s) is not believed.
_OLDEST_S = 60.0
#: How `failed` begins, by kind.
NO_CONNECTION, CLOSED, TIMED_OUT, ENDED = "no connection", "connection closed", "timed out", "the run was ended first"

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


@dataclass(eq=False)
class Exchange:
    """One request and what came back. Times are CLOCK_MONOTONIC, in seconds.

    Args:
        payload: The whole request, head and body.
        due_s: When it is to be sent.
        deadline_s: When it is given up.
        done: Called once, when it is over either way.
        sent_s: When the last byte of it was with the kernel.
        pieces: What arrived, each with its arrival.
        failed: What went wrong with the connection, "" where nothing did.
        ended_s: When it was over.
    """

    payload: bytes
    due_s: float
    deadline_s: float
    done: Callable[[Exchange], None]
    sent_s: float | None = None
    pieces: Pieces = field(default_factory=list)
    failed: str = ""
    ended_s: float | None = None


class _Connection:
    """One socket, with TLS on top where asked for; knows the exchange it works on."""

    __slots__ = ("exchange", "fd", "incoming", "length", "outgoing", "ready", "sock", "tls", "unsent", "waits_to_send")

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None, host: str) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _RX_SOFTWARE | _SOFTWARE)
        self.fd = self.sock.fileno()
        self.exchange: Exchange | None = None
        self.unsent = b""
        self.waits_to_send = False
        #: Size of the whole response where its head names one, -1 before the head is read, 0 where it is chunked.
        self.length = -1
        self.tls: ssl.SSLObject | None = None
        self.ready = tls is None
        if tls is not None:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = tls.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        code = self.sock.connect_ex(address)
        if code not in {0, errno.EINPROGRESS}:
            self.sock.close()
            raise OSError(code, os.strerror(code))

    def begin(self, exchange: Exchange) -> None:
        """Work on `exchange`: encrypt its payload now, or once the handshake is over."""
        self.exchange, self.length = exchange, -1
        if self.ready:
            self._encrypt(exchange.payload)

    def shake_hands(self) -> None:
        """Take the TLS handshake as far as it goes.

        Raises:
            ssl.SSLError: It failed.
        """
        if self.ready or self.tls is None:
            return
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.ready = True
        self.unsent += self.outgoing.read()
        if self.ready and self.exchange is not None:
            self._encrypt(self.exchange.payload)

    def decrypt(self, data: bytes) -> bytes:
        """Return what `data` from the socket means.

        Raises:
            ssl.SSLError: It means nothing.
        """
        if self.tls is None:
            return data
        self.incoming.write(data)
        self.shake_hands()
        plain = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while self.ready and (piece := self.tls.read(_READ)):
                plain.append(piece)
        return b"".join(plain)

    def _encrypt(self, payload: bytes) -> None:
        if self.tls is None:
            self.unsent = payload
        else:
            self.tls.write(payload)
            self.unsent += self.outgoing.read()


class Wire:
    """Sends exchanges to one server.

    Args:
        host: Name or address.
        port: Its port.
        tls: For https; None for http.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._tls = host, tls
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
        self._address = (str(address[0]), int(address[1]))
        self._epoll = select.epoll()
        self._timer = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._epoll.register(self._timer, select.EPOLLIN)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._reserved = 0
        self._under_way: set[Exchange] = set()
        self._stopped = False

    def submit(self, exchange: Exchange) -> None:
        """Send `exchange` when it is due."""
        self._under_way.add(exchange)
        self.call_at(exchange.due_s - _OPEN_AHEAD_S, self._reserve)
        self.call_at(exchange.due_s, lambda: self._send(exchange))
        self.call_at(exchange.deadline_s, lambda: self._expire(exchange))

    def call_at(self, when_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `when_s` (CLOCK_MONOTONIC)."""
        heapq.heappush(self._heap, (when_s, next(self._order), action))

    def stop(self) -> None:
        """Give up all exchanges: each is done, with the reason. May be called by a signal handler."""
        self._stopped = True

    def run(self) -> None:
        """Work until every exchange is done, those included that `done` submits meanwhile."""
        collecting = gc.isenabled()
        gc.disable()  # a collection of the oldest generation takes longer than a token
        try:
            while self._under_way and not self._stopped:
                self._turn()
            while self._under_way:
                self._finish(self._under_way.pop(), failed=ENDED)
        finally:
            if collecting:
                gc.enable()

    def close(self) -> None:
        """Close all sockets."""
        for connection in self._connections.values():
            connection.sock.close()
        self._connections.clear()
        self._epoll.close()
        os.close(self._timer)

    def _turn(self) -> None:
        while self._heap and self._heap[0][0] <= time.monotonic():
            heapq.heappop(self._heap)[2]()
        if not self._under_way:
            return
        if self._heap:
            seconds, fraction = divmod(max(self._heap[0][0], 0.0), 1.0)
            spec = _TIMERSPEC.pack(0, 0, int(seconds), max(int(fraction * 1e9), 1))
            _libc.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, spec, None)
        # The timer wakes it; the bound is for a signal that arrives just before the wait.
        for fd, event in self._epoll.poll(1.0, _BATCH):
            connection = self._connections.get(fd)
            if connection is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._timer, 8)
                continue
            if event & select.EPOLLOUT:
                self._flush(connection)
            if event & ~select.EPOLLOUT and connection.fd in self._connections:
                self._receive(connection)

    def _reserve(self) -> None:
        self._reserved += 1
        if self._reserved > len(self._idle):
            with contextlib.suppress(OSError):  # the send will say it
                self._idle.append(self._open())

    def _open(self) -> _Connection:
        connection = _Connection(self._address, self._tls, self._host)
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLRDHUP)
        connection.shake_hands()
        self._flush(connection)
        return connection

    def _send(self, exchange: Exchange) -> None:
        self._reserved = max(0, self._reserved - 1)
        if exchange not in self._under_way:
            return
        try:
            connection = self._idle.pop() if self._idle else self._open()
        except OSError as error:
            self._finish(exchange, failed=f"{NO_CONNECTION}: {error}")
            return
        connection.begin(exchange)
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except BlockingIOError:
            self._wait_to_send(connection, True)
            return
        except OSError as error:
            self._drop(connection, f"{NO_CONNECTION}: {error}")
            return
        self._wait_to_send(connection, False)
        if connection.exchange is not None and connection.ready and connection.exchange.sent_s is None:
            connection.exchange.sent_s = time.monotonic()

    def _wait_to_send(self, connection: _Connection, waits: bool) -> None:
        if connection.waits_to_send != waits:
            connection.waits_to_send = waits
            flags = select.EPOLLIN | select.EPOLLRDHUP | (select.EPOLLOUT if waits else 0)
            self._epoll.modify(connection.fd, flags)

    def _receive(self, connection: _Connection) -> None:
        try:
            data, ancillary, _, _ = connection.sock.recvmsg(_READ, _ANCILLARY)
        except BlockingIOError:
            return
        except OSError as error:
            sent = connection.exchange is not None and connection.exchange.sent_s is not None
            self._drop(connection, f"{CLOSED if sent else NO_CONNECTION}: {error}")
            return
        now, wall = time.monotonic(), time.time_ns()
        if not data:
            self._drop(connection, f"{CLOSED} before the end of the answer")
            return
        arrived = now
        for _, _, stamp in ancillary:
            seconds, nanoseconds = _STAMP.unpack_from(stamp)
            # The kernel's stamp is of the wall clock: only its age is used, so that a step of that clock does no harm.
            age = (wall - seconds * 1_000_000_000 - nanoseconds) / 1e9
            if 0 <= age < _OLDEST_S:
                arrived = now - age
        if connection.tls is not None:
            try:
                data = connection.decrypt(data)
            except ssl.SSLError as error:
                self._drop(connection, f"{NO_CONNECTION}: {error}")
                return
            self._flush(connection)
        if data and connection.exchange is not None:
            self._take(connection, connection.exchange, arrived, data)

    def _take(self, connection: _Connection, exchange: Exchange, arrived: float, data: bytes) -> None:
        exchange.pieces.append((arrived, data))
        if connection.length < 0 and not _read_head(connection, exchange):
            return
        if connection.length:
            over = sum(len(piece) for _, piece in exchange.pieces) >= connection.length
        else:
            # The mark may be cut in two, and text may look like it: only then is the whole answer looked through.
            tail = data if len(data) >= len(_LAST_CHUNK) else b"".join(piece for _, piece in exchange.pieces[-5:])
            over = tail.endswith(_LAST_CHUNK) and is_whole(exchange.pieces)
        if over:
            connection.exchange = None
            self._idle.append(connection)
            self._finish(exchange)

    def _drop(self, connection: _Connection, why: str) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if self._connections.pop(connection.fd, None) is not None:
            connection.sock.close()
        if connection.exchange is not None:
            self._finish(connection.exchange, failed=why)

    def _expire(self, exchange: Exchange) -> None:
        if exchange in self._under_way:
            for connection in list(self._connections.values()):
                if connection.exchange is exchange:
                    connection.exchange = None
                    self._drop(connection, "")
            self._finish(exchange, failed=TIMED_OUT)

    def _finish(self, exchange: Exchange, *, failed: str = "") -> None:
        self._under_way.discard(exchange)
        exchange.failed = failed
        exchange.payload = b""  # its deadline keeps it for minutes yet
        exchange.ended_s = time.monotonic()
        exchange.done(exchange)


def _read_head(connection: _Connection, exchange: Exchange) -> bool:
    text = b"".join(piece for _, piece in exchange.pieces)
    head, mark, _ = text.partition(b"\r\n\r\n")
    if not mark:
        return False
    fields = head.lower()
    start = fields.find(b"\r\ncontent-length:")
    connection.length = len(head) + 4 + int(fields[start + 17 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
    return True
