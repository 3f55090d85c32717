"""A wire in a process of its own, which receives and sends and does nothing else.

A read returns the stamp of the last segment that it holds (`connection.py`). A loop that decodes answers between its
reads lets the tokens of other streams gather, and the first of them gets the stamp of a later one. A thread of the same
process would not help: it keeps the interpreter for 5 ms at a time. So answers are decoded and requests put together in
one process, with a `RemoteWire`, and `serve` runs the `Wire` in another one. A socket pair joins the two.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import itertools
import math
import pickle
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pytest_kvcache.client.exchange import ENDED, Exchange
from pytest_kvcache.client.framing import Pieces
from pytest_kvcache.client.wire import Wire

#: What is submitted: number, bytes of the payload that follows, place, due_s, deadline_s, and stall_s or NaN.
_SUBMITTED = struct.Struct("=QQQddd")
_LENGTH = struct.Struct("=Q")
_READ = 1 << 18
#: A request is fetched and handed over so long before it is due (s): whatever this process does meanwhile, the other
#: one has opened a connection and sends it in time. It is longer than what a run has from when its load processes are
#: told the start to the first requests: these are handed over at once, before all later ones are noted.
_AHEAD_S = 0.75
#: So many pieces of an answer are handed over between two looks at the sockets of the streams.
_SLICE = 128


def serve(wire: Wire, end: socket.socket) -> None:
    """Run `wire` for the `RemoteWire` at the other end of `end`, until that is stopped or gone."""
    end.setblocking(False)
    _Desk(wire, end).run()


class _Desk:
    """Takes exchanges from a socket and hands them back when they are over; never waits for the socket.

    Args:
        wire: Sends the exchanges.
        end: This process's end, non-blocking.
    """

    def __init__(self, wire: Wire, end: socket.socket) -> None:
        self._wire, self._end = wire, end
        self._received = bytearray()
        self._over: deque[tuple[int, Exchange]] = deque()
        self._unsent = memoryview(b"")

    def run(self) -> None:
        """Serve until the other side is stopped; then hand over all that is under way."""
        self._wire.watch(self._end.fileno(), self._receive, self._hand_over)
        self._wire.run()
        self._wire.unwatch(self._end.fileno())
        with contextlib.suppress(OSError):
            self._end.setblocking(True)
            while self._over or self._unsent:
                self._hand_over()

    def _receive(self) -> None:
        try:
            data = self._end.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._wire.stop()
            return
        received = self._received
        received += data
        at = 0
        while len(received) - at >= _SUBMITTED.size:
            number, size, place, due_s, deadline_s, stall_s = _SUBMITTED.unpack_from(received, at)
            begin = at + _SUBMITTED.size
            if len(received) - begin < size:
                break
            at = begin + size
            exchange = Exchange(
                bytes(received[begin:at]),
                due_s,
                deadline_s,
                functools.partial(self._take_back, number),
                None if math.isnan(stall_s) else stall_s,
                place=place,
            )
            self._wire.submit(exchange)
        del received[:at]

    def _take_back(self, number: int, exchange: Exchange) -> None:
        self._over.append((number, exchange))
        self._wire.watch_writes(self._end.fileno(), True)

    def _hand_over(self) -> None:
        if not self._unsent and self._over:
            self._unsent = memoryview(self._next_slice())
        try:
            self._unsent = self._unsent[self._end.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # nobody is there any more, which the next read says too
            self._over.clear()
            self._unsent = memoryview(b"")
        if not self._unsent and not self._over:
            self._wire.watch_writes(self._end.fileno(), False)

    def _next_slice(self) -> bytes:
        number, exchange = self._over[0]
        pieces, rest = exchange.pieces[:_SLICE], exchange.pieces[_SLICE:]
        exchange.pieces = rest  # the timer of its deadline keeps the exchange for minutes yet
        end = None
        if not rest:
            self._over.popleft()
            end = (exchange.sent_s, exchange.failed, exchange.resent)
        told = pickle.dumps((number, pieces, end), pickle.HIGHEST_PROTOCOL)
        return _LENGTH.pack(len(told)) + told


class RemoteWire:
    """A `Wire` that runs in another process, by `serve`.

    Exchanges that are under way when that process ends are over with `ENDED`.

    Args:
        end: This process's end of the socket pair.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._numbers = itertools.count()
        self._under_way: dict[int, Exchange] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._later: deque[Callable[[], None]] = deque()
        self._received = bytearray()
        self._gone = False
        self._readable = select.poll()
        self._readable.register(end, select.POLLIN)

    def submit(self, exchange: Exchange) -> None:
        """Have `exchange` sent when it is due; its payload is given away, one that is to be fetched soon before."""
        number = next(self._numbers)
        self._under_way[number] = exchange
        hand_over = functools.partial(self._hand_over, number, exchange)
        if exchange.fetch is not None and exchange.due_s - time.monotonic() > _AHEAD_S:
            self.call_at(exchange.due_s - _AHEAD_S, hand_over)
        else:
            hand_over()

    def _hand_over(self, number: int, exchange: Exchange) -> None:
        if number not in self._under_way:  # the other process is gone, and the exchange is over
            return
        if exchange.fetch is not None:
            exchange.payload, exchange.fetch = exchange.fetch(), None
        payload, exchange.payload = exchange.payload, b""
        stall_s = math.nan if exchange.stall_s is None else exchange.stall_s
        try:
            # In two pieces, so that no prompt is copied. The other process reads at all times.
            times = (exchange.due_s, exchange.deadline_s, stall_s)
            self._end.sendall(_SUBMITTED.pack(number, len(payload), exchange.place, *times))
            self._end.sendall(payload)
        except OSError:
            pass  # the other process is gone, or this one was stopped: `run` sees the end of the socket

    def call_at(self, when_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `when_s` (CLOCK_MONOTONIC), or soon after."""
        heapq.heappush(self._heap, (when_s, next(self._numbers), action))

    def when_idle(self, action: Callable[[], None]) -> None:
        """Call `action` when no exchange that is over waits; at the latest when `run` ends."""
        self._later.append(action)

    def stop(self) -> None:
        """Give up all exchanges: each one's `done` is called, and `failed` says why. A signal handler may call this."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def run(self) -> None:
        """Run until every exchange is over, including those that a call of `done` submits meanwhile."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            while self._under_way:
                self._turn()
            while self._later:
                self._later.popleft()()
        finally:
            if collecting:
                gc.enable()

    def close(self) -> None:
        """Close the socket, which ends the other process."""
        self._end.close()

    def _turn(self) -> None:
        heap = self._heap
        while heap and heap[0][0] <= time.monotonic():
            heapq.heappop(heap)[2]()
        if self._gone:
            for number in list(self._under_way):
                self._finish(number, None, ENDED, resent=False)
            return
        wait_s = max(0.0, heap[0][0] - time.monotonic()) if heap else 1.0
        if self._readable.poll(0 if self._later else math.ceil(1e3 * min(wait_s, 1.0))):
            self._receive()
        elif self._later:
            self._later.popleft()()

    def _receive(self) -> None:
        try:
            data = self._end.recv(_READ)
        except OSError:
            data = b""
        if not data:
            self._gone = True
            return
        received = self._received
        received += data
        at = 0
        while len(received) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(received, at)
            begin = at + _LENGTH.size
            if len(received) - begin < size:
                break
            at = begin + size
            self._take(*pickle.loads(memoryview(received)[begin:at].tobytes()))  # noqa: S301 - written by our own process
        del received[:at]

    def _take(self, number: int, pieces: Pieces, end: Any) -> None:
        self._under_way[number].pieces += pieces
        if end is not None:
            sent_s, failed, resent = end
            self._finish(number, sent_s, failed, resent=resent)

    def _finish(self, number: int, sent_s: float | None, failed: str, *, resent: bool) -> None:
        exchange = self._under_way.pop(number)
        exchange.sent_s, exchange.failed, exchange.resent = sent_s, failed, resent
        exchange.done(exchange)
