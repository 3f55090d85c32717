"""The coordinator's side of the connection to one load node."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pytest_kvcache.endpoint.address import ascii_host
from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.load.clocks import ClockComparison, ClockReading, RoundTrip, read
from pytest_kvcache.load.nodes import messages
from pytest_kvcache.load.nodes.channel import Channel, ChannelClosedError, Message
from pytest_kvcache.load.records import RequestRecord

_CONNECT_S = 10.0
#: A node has so long to unpack its share and to make its first requests (s).
_PREPARE_S = 600.0
_ANSWER_S = 10.0
#: Round trips of one comparison, and how often it is begun anew where its uncertainty is above the budget.
TRIPS, _TRIES = 64, 5


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an IPv6 address stands in brackets.

    Raises:
        ConfigError: It is no such address.
    """
    host, _, port = text.strip().rpartition(":")
    try:
        host = ascii_host(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        host = ""
    if not host or not port.isascii() or not port.isdecimal() or not int(port) < 65536:
        raise ConfigError(
            f"{text!r} is no HOST:PORT", where="load nodes", todo="for instance 10.0.0.7:7777, [fd00::7]:7777"
        )
    return host, int(port)


class NodeLink:
    """A load node that has proved itself and runs the same code.

    Args:
        address: Its address (HOST:PORT), which is its name too.
        key: The secret that it knows.

    Raises:
        RunError: Nobody answers there, with another key, from another version, or busy with another load.
    """

    def __init__(self, address: str, key: bytes) -> None:
        self.address = address
        self.readings: list[ClockReading] = []
        self.workers = 0
        self.at_once = True
        self.start_ns = 0
        #: What the node's load processes lost.
        self.lost: list[str] = []
        #: Why there is no connection any more, "" while there is one.
        self.ended = ""
        self.heard_s = time.monotonic()
        #: Called with what the node says of the load: `Told`, its last rows, or None once it is gone.
        self.hear: Callable[[object], None] = lambda _: None
        self._replies: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._times: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._comparing = threading.Lock()
        where = self._where = f"load node {address}"
        try:
            sock = socket.create_connection(split_address(address), timeout=_CONNECT_S)
        except OSError as error:
            raise RunError(
                f"cannot be reached: {error.strerror or error}",
                where=where,
                todo="start `pytest-kvcache load-node` there, and let its port through",
            ) from None
        try:
            self._channel = Channel(sock, key, calls=True)
        except RunError as error:
            raise RunError(error.what, where=where, todo=error.todo) from None
        self._reader = threading.Thread(target=self._read, name=f"node {address}", daemon=True)
        self._reader.start()
        try:
            self._channel.send_json(messages.HELLO, messages.identity())
            self.identity: dict[str, Any] = self._reply(messages.HELLO, _ANSWER_S).json()
        except ChannelClosedError as error:
            self.close()
            raise RunError(f"hung up: {error}", where=where) from None
        except RunError:
            self.close()
            raise

    def compare(self, trips: int = TRIPS) -> ClockReading:
        """Compare the clocks, keep the reading and return it.

        Raises:
            ChannelClosedError: The node is gone.
        """
        with self._comparing:
            found = []
            for _ in range(trips):
                sent_ns = self._channel.send(messages.CLOCK)
                try:
                    answer = self._times.get(timeout=_ANSWER_S)
                except queue.Empty:
                    raise ChannelClosedError(f"no answer for {_ANSWER_S:g} s") from None
                if answer is None:
                    raise ChannelClosedError(self.ended)
                received_ns, replied_ns = messages.CLOCK_ANSWER.unpack(answer.body)
                found.append(RoundTrip(sent_ns, received_ns, replied_ns, answer.at_ns))
            reading = read(found)
            self.readings.append(reading)
            return reading

    def know_clock(self, budget_s: float) -> None:
        """Compare the clocks before a load.

        Raises:
            RunError: The offset is not known within the budget, or the node is gone.
        """
        best: ClockReading | None = None
        for _ in range(_TRIES):
            try:
                found = self.compare()
            except ChannelClosedError as error:
                raise RunError(f"hung up: {error}", where=self._where) from None
            best = found if best is None or found.uncertainty_ns < best.uncertainty_ns else best
            self.readings = [best]
            if best.uncertainty_ns <= budget_s * 1e9:
                return
        assert best is not None  # noqa: S101 - _TRIES is not 0
        raise RunError(
            f"its clock is known to {best.uncertainty_ns / 1e6:.3g} ms only (shortest round trip "
            f"{best.round_trip_ns / 1e6:.3g} ms), budget {budget_s * 1e3:g} ms",
            where=self._where,
            todo="take a node that is nearer or less busy, or allow more with workload.clock_error_budget_s",
        )

    def prepare(self, share: messages.NodeShare) -> None:
        """Hand the node its share; `ready` waits for it.

        Raises:
            RunError: The node is gone.
        """
        try:
            self._channel.send(messages.SHARE, share.pack())
        except ChannelClosedError as error:
            raise RunError(f"hung up: {error}", where=self._where) from None

    def ready(self) -> None:
        """Return when the node may begin.

        Raises:
            RunError: It cannot send its share, and says why.
        """
        self.workers = int(self._reply(messages.READY, _PREPARE_S).json()["workers"])

    def begin(self, start_ns: int) -> None:
        """Have the node begin at a time of our clock; where it is gone, it is heard to be."""
        self.start_ns = round(self.clock.node_ns(start_ns))
        self.heard_s = time.monotonic()
        self._send(messages.START, messages.START_AT.pack(self.start_ns))

    def stop(self) -> None:
        """Have the node hand over what it has."""
        self._send(messages.STOP)

    @property
    def clock(self) -> ClockComparison:
        """What is known of the node's clock."""
        return ClockComparison(tuple(self.readings))

    def hang_up(self) -> None:
        """End the connection; the node then ends its load."""
        self._channel.hang_up()

    def close(self) -> None:
        """End the connection and wait for the thread that reads it."""
        self._channel.hang_up()
        self._reader.join()
        self._channel.close()

    def _send(self, kind: str, body: bytes = b"") -> None:
        try:
            self._channel.send(kind, body)
        except ChannelClosedError:
            self._channel.hang_up()  # which the thread that reads notices and says

    def _reply(self, kind: str, timeout_s: float) -> Message:
        try:
            found = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            raise RunError(f"said nothing for {timeout_s:g} s", where=self._where) from None
        if found is None:
            raise RunError(f"hung up: {self.ended}", where=self._where, todo="read the agent's output there")
        if found.kind == messages.ERROR:
            told = found.json()
            raise RunError(str(told.get("what")), where=self._where, todo=str(told.get("todo", "")))
        if found.kind != kind:
            raise RunError(f"said {found.kind!r} in place of {kind!r}", where=self._where)
        return found

    def _read(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                self.heard_s = time.monotonic()
                if message.kind == messages.CLOCK:
                    self._times.put(message)
                elif message.kind == messages.TOLD:
                    self.hear(messages.unpack_told(message.body))
                elif message.kind == messages.DONE:
                    self.hear(self._last(message.body))
                else:
                    if message.kind == messages.ERROR:
                        self.ended = str(message.json().get("what"))
                    self._replies.put(message)
        except ChannelClosedError as error:
            self.ended = self.ended or str(error)
        except (ValueError, TypeError, KeyError) as error:  # what reading a message of another shape raises
            self.ended = f"it said what cannot be read: {type(error).__name__}"
            self._channel.hang_up()
        self._replies.put(None)
        self._times.put(None)
        self.hear(None)

    def _last(self, body: bytes) -> list[RequestRecord]:
        head, rows = messages.unpack_rows(body)
        self.at_once = bool(head["at_once"])
        self.lost = [str(each) for each in head["lost"]]
        return rows
