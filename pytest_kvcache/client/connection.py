"""One connection to the server: a socket on which the kernel stamps departures and arrivals, with TLS for https.

The stamps are software stamps (SO_TIMESTAMPING, Documentation/networking/timestamping.rst). The kernel takes one when
the segment with the last byte of the request goes to the network interface, and one when a segment of the answer comes
from the interface. They are times of the wall clock; `WallClock` turns them into times of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
import time

from pytest_kvcache.client.addresses import Address
from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.client.framing import StreamedAnswer

_SO_TIMESTAMPING = 37
# The flags SOF_TIMESTAMPING_* of Documentation/networking/timestamping.rst, in this order: stamp departures, stamp
# arrivals, report software stamps, number a departure by its last byte, return the stamp without a copy of the data,
# count bytes from the setting of the option.
_TX, _RX, _SOFTWARE, _OPT_ID, _OPT_TSONLY, _OPT_ID_TCP = 1 << 1, 1 << 3, 1 << 4, 1 << 7, 1 << 11, 1 << 16
_MSG_ERRQUEUE = 0x2000
_STAMP = struct.Struct("@qq")
_EXTENDED_ERROR = struct.Struct("@IBBBBII")
_ERROR_ORIGIN_STAMP = 4
_ANCILLARY = socket.CMSG_SPACE(3 * _STAMP.size)
_ERROR_ANCILLARY = _ANCILLARY + socket.CMSG_SPACE(_EXTENDED_ERROR.size + 64)
_READ = 1 << 16
#: A stamp older than this (ns) is not believed.
_OLDEST_NS = 60_000_000_000
#: A comparison of the two clocks that took longer than this (ns) is not believed.
_COMPARED_NS = 5_000


class WallClock:
    """Turns stamps of the wall clock into times of CLOCK_MONOTONIC.

    The difference of the two clocks is read again at every turn of the event loop, so that a step of the wall
    clock (or its slow correction) spoils no more than the stamps that are being taken at that moment.
    """

    __slots__ = ("_ahead_ns", "_newest_ns")

    def __init__(self) -> None:
        self._ahead_ns = self._newest_ns = 0
        self.compare()

    def compare(self) -> None:
        """Read how far the wall clock is ahead of CLOCK_MONOTONIC."""
        for _ in range(3):  # tries again where the process was interrupted between the readings
            before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
            if after - before < _COMPARED_NS or not self._ahead_ns:
                self._ahead_ns = wall - (before + after) // 2
                break
        self._newest_ns = after

    def monotonic_s(self, stamp: bytes) -> float | None:
        """Return a stamp's time on CLOCK_MONOTONIC (s); None where the stamp is empty, too old or in the future."""
        seconds, nanoseconds = _STAMP.unpack_from(stamp)
        at = int(seconds * 1_000_000_000 + nanoseconds - self._ahead_ns)
        if at > self._newest_ns:
            self.compare()
            at = int(seconds * 1_000_000_000 + nanoseconds - self._ahead_ns)
        # The comparison is good to about a microsecond: a stamp that was just taken may seem to be in the future.
        return at / 1e9 if self._newest_ns - _OLDEST_NS < at <= self._newest_ns + _COMPARED_NS else None


class Connection:
    """One socket, and the exchange that is under way on it.

    Args:
        address: Of the server.
        clock: Converts the kernel's stamps.
        tls: TLS settings for https; None for http.
        host: Name that the server's certificate must have; an address without its zone.

    Raises:
        OSError: The connection cannot be opened.
    """

    __slots__ = (
        "_clock",
        "_incoming",
        "_outgoing",
        "_sent_bytes",
        "_stamped",
        "_stamps_sends",
        "_tls",
        "_unsent",
        "answer",
        "exchange",
        "fd",
        "ready",
        "sock",
        "used",
        "waits_to_send",
    )

    def __init__(self, address: Address, clock: WallClock, tls: ssl.SSLContext | None, host: str) -> None:
        self.sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.fd = self.sock.fileno()
        self.exchange: Exchange | None = None
        self.answer = StreamedAnswer([])
        #: Whether an exchange was finished on this connection.
        self.used = False
        self.waits_to_send = False
        self._clock = clock
        self._unsent = b""
        self._sent_bytes = 0
        self._stamped = False
        self._tls: ssl.SSLObject | None = None
        #: Whether a request may be written: from the start without TLS, after the handshake with TLS.
        self.ready = tls is None
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address.place)
        if code not in {0, errno.EINPROGRESS}:
            self.sock.close()
            raise OSError(code, os.strerror(code))
        try:  # set after connecting: the kernel counts bytes from here on
            flags = _TX | _RX | _SOFTWARE | _OPT_ID | _OPT_TSONLY | _OPT_ID_TCP
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, flags)
            self._stamps_sends = True
        except OSError:  # Linux before 6.2, or a connection that is closed already
            self._stamps_sends = False
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _RX | _SOFTWARE)

    def begin(self, exchange: Exchange) -> None:
        """Take on `exchange`: write its payload now, or once the TLS handshake is over."""
        self.exchange, self.answer, self._stamped = exchange, StreamedAnswer(exchange.pieces), False
        if self.ready:
            self._write(exchange.payload)

    def shake_hands(self) -> None:
        """Carry on the TLS handshake as far as the data that arrived allow.

        Raises:
            ssl.SSLError: The handshake failed.
        """
        if self.ready or self._tls is None:
            return
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self.ready = True
        self._unsent += self._outgoing.read()
        if self.ready and self.exchange is not None:
            self._write(self.exchange.payload)

    def flush(self) -> None:
        """Send the bytes that are written, and stamp the exchange once the last byte is sent.

        Raises:
            BlockingIOError: The socket takes no more for now; the rest must wait.
            OSError: The connection is broken.
        """
        if self._unsent:
            view, sent = memoryview(self._unsent), 0
            try:
                while sent < len(view):
                    sent += self.sock.send(view[sent:])
            finally:  # a request of megabytes is copied once for each flush, not for each send
                self._sent_bytes += sent
                self._unsent = bytes(view[sent:])
        if self.exchange is not None and self.exchange.sent_s is None and self.ready:
            # The clock's time stands until the kernel's stamp replaces it: the process may have been interrupted since.
            self.exchange.sent_s = time.monotonic()
            self.read_send_stamps()

    def read_send_stamps(self) -> None:
        """Take the kernel's stamp of the request's last byte if it is there; EPOLLERR announces a later one."""
        if not self._stamps_sends:
            return
        while True:
            try:
                _, ancillary, _, _ = self.sock.recvmsg(0, _ERROR_ANCILLARY, _MSG_ERRQUEUE)
            except OSError:
                return
            at, key = None, None
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPING:
                    at = self._clock.monotonic_s(data)
                elif len(data) >= _EXTENDED_ERROR.size:
                    _, origin, _, _, _, _, number = _EXTENDED_ERROR.unpack_from(data)
                    key = number if origin == _ERROR_ORIGIN_STAMP else None
            is_last = key == (self._sent_bytes - 1) & 0xFFFFFFFF
            # A byte that is sent again is stamped again: the first stamp counts.
            if at and is_last and not self._stamped and self.exchange is not None and self.exchange.sent_s:
                self.exchange.sent_s, self._stamped = at, True

    def receive(self) -> tuple[float | None, bytes | None]:
        """Return the kernel's stamp of the last segment that arrived (s, CLOCK_MONOTONIC), and the data.

        The stamp is None where the kernel gave none. The data are b"" at the end of the connection, and None where
        nothing can be read yet.

        Raises:
            OSError: The connection is broken, or the data are not TLS (ssl.SSLError).
        """
        try:
            data, ancillary, _, _ = self.sock.recvmsg(_READ, _ANCILLARY)
        except BlockingIOError:
            return None, None
        if not data:
            return None, b""
        at = self._clock.monotonic_s(ancillary[0][2]) if ancillary else None
        if self._tls is None:
            return at, data
        self._incoming.write(data)
        self.shake_hands()
        plain = []
        try:
            while self.ready and (piece := self._tls.read(_READ)):
                plain.append(piece)
        except ssl.SSLWantReadError:
            return at, b"".join(plain) or None
        except ssl.SSLZeroReturnError:
            pass  # the server has closed TLS, perhaps together with the last data
        return at, b"".join(plain) if self.ready else None

    def _write(self, payload: bytes) -> None:
        if self._tls is None:
            self._unsent = payload
        else:
            self._tls.write(payload)
            self._unsent += self._outgoing.read()
