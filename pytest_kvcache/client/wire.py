"""HTTP/1.1 over raw sockets: requests leave at absolute times, and the kernel stamps departures and arrivals.

The TTFT that a Python client reads includes the time until its event loop came around to the socket. Here the
kernel says when the request left and when the bytes arrived (`connection.py`). A busy loop can make a token's time late
only where one read returns several segments: all of them get the stamp of the last one. A timerfd wakes the loop for
each send, to the microsecond, and connections are opened beforehand. Responses are kept as they arrive; whoever
submitted the exchange decodes them.

All of it runs in one thread, on epoll and without locks.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import select
import ssl
import time
from collections.abc import Callable, Sequence

from pytest_kvcache.client import event_stream
from pytest_kvcache.client.addresses import answering
from pytest_kvcache.client.connection import Connection, WallClock
from pytest_kvcache.client.event_stream import DONE
from pytest_kvcache.client.exchange import CLOSED, ENDED, MALFORMED, NO_CONNECTION, STALLED, TIMED_OUT, Exchange
from pytest_kvcache.client.open_files import raise_open_files
from pytest_kvcache.client.timer import Timer

__all__ = ["CLOSED", "ENDED", "MALFORMED", "NO_CONNECTION", "STALLED", "TIMED_OUT", "Exchange", "Wire"]

#: Connections are opened this long before they are needed (s).
_OPEN_AHEAD_S = 0.05
_BATCH = 8
#: A kept connection that closes this soon (s) after a request was sent had been closed before the request was read.
_AT_ONCE_S = 0.25
#: How long a stream that came to its last event may keep its connection open (s).
_DONE_S = 1.0
_READABLE = select.EPOLLIN | select.EPOLLRDHUP


class Wire:
    """Sends exchanges to one server, or each to the one that its `place` names.

    Args:
        host: Name or address of the server; a link-local address with its zone behind a `%`.
        port: TCP port of the server.
        tls: TLS settings for https; None for http.
        more: Host and port of further servers, whose places count from 1.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, more: Sequence[tuple[str, int]] = ()
    ) -> None:
        self._tls = tls
        # Certificates and SNI have names without the dot that may end them (RFC 6066, 3).
        self._servers = [
            (each.partition("%")[0].rstrip("."), answering(each, number)) for each, number in ((host, port), *more)
        ]
        raise_open_files()
        self._clock = WallClock()
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._connections: dict[int, Connection] = {}
        #: By place: idle connections, and how many requests are about to need one.
        self._idle: list[list[Connection]] = [[] for _ in self._servers]
        self._reserved = [0 for _ in self._servers]
        #: Exchanges that are not over, each with its connection once it has one.
        self._under_way: dict[Exchange, Connection | None] = {}
        #: What else is watched: what to call when a file is readable, and when it is writable.
        self._watched: dict[int, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._stopped = False

    def submit(self, exchange: Exchange) -> None:
        """Send `exchange` when it is due."""
        self._under_way[exchange] = None
        self.call_at(exchange.due_s - _OPEN_AHEAD_S, lambda: self._reserve(exchange.place))
        self.call_at(exchange.due_s, lambda: self._send(exchange))
        self.call_at(exchange.deadline_s, lambda: self._expire(exchange))

    def call_at(self, when_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `when_s` (CLOCK_MONOTONIC)."""
        heapq.heappush(self._heap, (when_s, next(self._order), action))

    def watch(self, fd: int, on_readable: Callable[[], None], on_writable: Callable[[], None]) -> None:
        """Call `on_readable` whenever `fd` is; `run` goes on until `stop` or `unwatch`. See `watch_writes` too."""
        self._watched[fd] = (on_readable, on_writable)
        self._epoll.register(fd, _READABLE)

    def watch_writes(self, fd: int, watches: bool) -> None:
        """Call what `watch` was given whenever `fd` is writable, or no longer."""
        if fd in self._watched:
            self._epoll.modify(fd, _READABLE | (select.EPOLLOUT if watches else 0))

    def unwatch(self, fd: int) -> None:
        """Watch `fd` no longer."""
        del self._watched[fd]
        self._epoll.unregister(fd)

    def stop(self) -> None:
        """Give up all exchanges: each one's `done` is called, and `failed` says why. A signal handler may call this."""
        self._stopped = True

    def run(self) -> None:
        """Run until every exchange is done, including those that a call of `done` submits meanwhile."""
        collecting = gc.isenabled()
        gc.disable()  # a collection of the oldest generation takes longer than a token does
        try:
            while (self._under_way or self._watched) and not self._stopped:
                self._turn()
            while self._under_way:
                self._finish(next(iter(self._under_way)), failed=ENDED)
        finally:
            if collecting:
                gc.enable()

    def close(self) -> None:
        """Close all sockets."""
        for connection in self._connections.values():
            connection.sock.close()
        self._connections.clear()
        self._epoll.close()
        self._timer.close()

    def _turn(self) -> None:
        heap = self._heap
        while heap and heap[0][0] <= time.monotonic():
            heapq.heappop(heap)[2]()
        if not self._under_way and not self._watched:
            return
        if heap:
            self._timer.arm(heap[0][0])
        # The timer ends this wait; the limit of 1 s is there for a signal that arrives just before the wait.
        events = self._epoll.poll(1.0, _BATCH)
        self._clock.compare()
        for fd, event in events:
            connection = self._connections.get(fd)
            if fd in self._watched:
                for action, when in zip(self._watched[fd], (~select.EPOLLOUT, select.EPOLLOUT), strict=True):
                    if event & when:
                        action()
                continue
            if connection is None:
                self._timer.read()
                continue
            if event & select.EPOLLERR:
                connection.read_send_stamps()
            if event & select.EPOLLOUT:
                self._flush(connection)
            if event & ~select.EPOLLOUT and self._connections.get(fd) is connection:
                self._receive(connection)

    def _reserve(self, place: int) -> None:
        self._reserved[place] += 1
        if self._reserved[place] > len(self._idle[place]):
            with contextlib.suppress(OSError):  # the send tries again, and reports what fails then
                self._idle[place].append(self._open(place))

    def _open(self, place: int) -> Connection:
        host, address = self._servers[place]
        connection = Connection(address, self._clock, self._tls, host)
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, _READABLE)
        connection.shake_hands()
        self._flush(connection)
        return connection

    def _send(self, exchange: Exchange) -> None:
        place = exchange.place
        self._reserved[place] = max(0, self._reserved[place] - 1)
        if exchange in self._under_way:
            idle = self._idle[place]
            self._begin(exchange, idle.pop if idle else lambda: self._open(place))

    def _begin(self, exchange: Exchange, connect: Callable[[], Connection]) -> None:
        try:
            connection = connect()
        except OSError as error:
            self._finish(exchange, failed=f"{NO_CONNECTION}: {error}")
            return
        self._under_way[exchange] = connection
        if exchange.fetch is not None:
            exchange.payload, exchange.fetch = exchange.fetch(), None
        connection.begin(exchange)
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        exchange = connection.exchange
        unsent = exchange is not None and exchange.sent_s is None
        try:
            connection.flush()
        except BlockingIOError:
            self._wait_to_send(connection, True)
            return
        except OSError as error:
            self._take_what_came(connection)
            if self._connections.get(connection.fd) is connection:
                self._drop(connection, NO_CONNECTION if unsent else CLOSED, str(error))
            return
        self._wait_to_send(connection, False)
        if exchange is not None and unsent and exchange.sent_s is not None and exchange.stall_s is not None:
            self._watch(exchange, exchange.sent_s, exchange.stall_s)

    def _take_what_came(self, connection: Connection) -> None:
        """Read what a server wrote before it broke the connection: it may refuse a long request early."""
        with contextlib.suppress(OSError):
            while (exchange := connection.exchange) is not None:
                at, data = connection.receive()
                if not data:
                    return
                self._take(connection, exchange, at, data)

    def _wait_to_send(self, connection: Connection, waits: bool) -> None:
        if connection.waits_to_send != waits:
            connection.waits_to_send = waits
            self._epoll.modify(connection.fd, _READABLE | (select.EPOLLOUT if waits else 0))

    def _receive(self, connection: Connection) -> None:
        exchange = connection.exchange
        try:
            at, data = connection.receive()
        except OSError as error:
            sent = exchange is not None and exchange.sent_s is not None
            self._drop(connection, CLOSED if sent else NO_CONNECTION, str(error))
            return
        if data:
            # Taken before anything is written: the server may have broken the connection since, and a write that fails
            # would end the exchange without what it had answered.
            if exchange is None:
                self._drop(connection)  # no request is open here: mostly, the server tells of its timeout
            else:
                self._take(connection, exchange, at, data)
            if connection.waits_to_send and self._connections.get(connection.fd) is connection:
                self._flush(connection)
            return
        self._flush(connection)
        if data is not None and self._connections.get(connection.fd) is connection:
            self._end_of(connection)

    def _end_of(self, connection: Connection) -> None:
        exchange = connection.exchange
        try:
            if exchange is not None and connection.answer.may_end():
                self._release(connection, exchange, keeps=False)
                return
        except ValueError as error:
            self._drop(connection, MALFORMED, str(error))
            return
        self._drop(connection, CLOSED, "before the end of the answer")

    def _take(self, connection: Connection, exchange: Exchange, at: float | None, data: bytes) -> None:
        try:
            over = connection.answer.take(time.monotonic() if at is None else at, data)
        except ValueError as error:
            self._drop(connection, MALFORMED, str(error))
            return
        if not over and event_stream.may_be_done(exchange.pieces, data):
            self.call_at(time.monotonic() + _DONE_S, lambda: self._end_if_done(exchange))
        if over:
            head = connection.answer.head
            self._release(connection, exchange, keeps=head is not None and head.keeps)

    def _release(self, connection: Connection, exchange: Exchange, *, keeps: bool) -> None:
        connection.exchange, connection.used = None, True
        if keeps and exchange.sent_s is not None:
            self._idle[exchange.place].append(connection)
        else:
            self._drop(connection)
        self._finish(exchange)

    def _drop(self, connection: Connection, kind: str = "", why: str = "") -> None:
        for idle in self._idle:
            with contextlib.suppress(ValueError):
                idle.remove(connection)
        if self._connections.pop(connection.fd, None) is not None:
            connection.sock.close()
        exchange, connection.exchange = connection.exchange, None
        if exchange is None:
            return
        if (
            connection.used
            and not exchange.pieces
            and not exchange.resent
            and kind in {CLOSED, NO_CONNECTION}
            and (exchange.sent_s is None or time.monotonic() - exchange.sent_s < _AT_ONCE_S)
        ):
            # The request and the server's keep-alive timeout crossed: that is no failure of the server. A server that
            # took the request and closed later may have acted on it, and a POST is not sent again then (RFC 9110,
            # 9.2.2).
            exchange.resent, exchange.sent_s = True, None
            self._begin(exchange, lambda: self._open(exchange.place))
        else:
            self._finish(exchange, failed=f"{kind}: {why}")

    def _end_if_done(self, exchange: Exchange) -> None:
        """Finish an exchange whose last event came, and whose server keeps the connection open all the same."""
        connection = self._under_way.get(exchange)
        if connection is None:
            return
        with contextlib.suppress(ValueError):
            if any(event == DONE for _, event in event_stream.events(exchange.pieces)):
                self._release(connection, exchange, keeps=False)

    def _watch(self, exchange: Exchange, last_s: float, stall_s: float) -> None:
        # Each stream has one timer, set again when it goes off: tokens arrive far more often than streams stall.
        self.call_at(last_s + stall_s, lambda: self._check_progress(exchange, stall_s))

    def _check_progress(self, exchange: Exchange, stall_s: float) -> None:
        connection = self._under_way.get(exchange)
        if connection is None or exchange.sent_s is None:
            return
        self._receive(connection)  # data may have arrived that the loop has not read yet
        if exchange not in self._under_way or exchange.sent_s is None:
            return
        last_s = exchange.pieces[-1][0] if exchange.pieces else exchange.sent_s
        if last_s + stall_s > time.monotonic():
            self._watch(exchange, last_s, stall_s)
        else:
            self._drop(connection, STALLED, f"nothing arrived for {stall_s:g} s")

    def _expire(self, exchange: Exchange) -> None:
        if exchange in self._under_way:
            connection = self._under_way[exchange]
            if connection is None:
                self._finish(exchange, failed=TIMED_OUT)
            else:
                self._drop(connection, TIMED_OUT, "the answer was not over by its deadline")

    def _finish(self, exchange: Exchange, *, failed: str = "") -> None:
        self._under_way.pop(exchange, None)
        exchange.failed = failed
        exchange.payload = b""  # the timer of its deadline keeps the exchange for minutes yet
        exchange.done(exchange)
