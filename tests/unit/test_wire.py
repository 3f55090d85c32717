"""The wire: absolute times, the kernel's stamps, framing, and every way in which a connection ends."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.workload import framing, wire
from pytest_kvcache.workload.wire import Exchange, Wire

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Server:
    """Answers each connection with a script of pauses (s) and bytes.

    Args:
        script: Run for every request on a connection.
        tls: For https.
    """

    def __init__(self, script: list[float | bytes], tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.accepted = 0
        self._script, self._tls = script, tls
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            peer = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with peer:
                while peer.recv(1 << 20):
                    for step in self._script:
                        if isinstance(step, bytes):
                            peer.sendall(step)
                        elif step < 0:
                            return
                        else:
                            time.sleep(step)
        except OSError:
            return


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers, and close them."""
    servers: list[Server] = []

    def start(script: list[float | bytes], tls: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(script, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.socket.close()


def ask(port: int, count: int = 1, *, timeout_s: float = 5, tls: ssl.SSLContext | None = None) -> list[Exchange]:
    """Send `count` requests 50 ms apart and return them when they are over."""
    done: list[Exchange] = []
    line = Wire("127.0.0.1", port, tls)
    start = time.monotonic() + 0.1
    payload = framing.request("h", "/v1/x", b"{}")
    for i in range(count):
        due = start + 0.05 * i
        line.submit(Exchange(payload, due, due + timeout_s, done.append))
    line.run()
    line.close()
    return done


def test_an_answer_carries_its_arrivals(serve: Callable[..., Server]) -> None:
    """Events come back in order, each with a stamp after the send and near its pause."""
    server = serve([HEAD + chunk(b"data: a\n\n"), 0.2, chunk(b"data: b\n\n"), 0.05, b"0\r\n\r\n"])
    (exchange,) = ask(server.port)
    (at_a, a), (at_b, b) = framing.events(exchange.pieces)
    assert (a, b, exchange.failed, framing.status(exchange.pieces)) == (b"a", b"b", "", 200)
    assert exchange.sent_s is not None
    assert exchange.due_s <= exchange.sent_s <= at_a < at_b
    assert at_b - at_a == pytest.approx(0.2, abs=0.1)


def test_a_busy_loop_delays_no_stamp(serve: Callable[..., Server]) -> None:
    """While something else keeps the loop, the kernel stamps what arrives."""
    server = serve([0.1, HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"])
    done: list[Exchange] = []
    line = Wire("127.0.0.1", server.port)
    due = time.monotonic() + 0.1
    line.submit(Exchange(framing.request("h", "/", b""), due, due + 5, done.append))
    line.call_at(due + 0.05, lambda: time.sleep(0.5))
    line.run()
    line.close()
    ((at, _),) = framing.events(done[0].pieces)
    assert done[0].ended_s is not None
    assert done[0].ended_s - due > 0.5
    assert at - due < 0.4


def test_a_connection_is_used_again(serve: Callable[..., Server]) -> None:
    """Requests one after the other share a connection."""
    server = serve([HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"])
    done = ask(server.port, 5)
    assert [e.failed for e in done] == [""] * 5
    assert server.accepted <= 2


def test_an_answer_with_a_length(serve: Callable[..., Server]) -> None:
    """A response with Content-Length, such as an error, is over when it is there, however it is cut."""
    server = serve([b"HTTP/1.1 404 Not Found\r\nContent-", 0.05, b"Length: 5\r\n\r\nno", 0.05, b"pe!"])
    (exchange,) = ask(server.port)
    assert (framing.status(exchange.pieces), exchange.failed) == (404, "")
    assert b"".join(data for _, data in framing.body_pieces(exchange.pieces)) == b"nope!"


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        ([-1.0], wire.CLOSED),
        ([HEAD + chunk(b"data: a\n\n"), 0.05, -1.0], wire.CLOSED),
        ([HEAD, 60.0], wire.TIMED_OUT),
    ],
    ids=["closed at once", "closed in the middle", "stalled"],
)
def test_how_a_connection_fails(serve: Callable[..., Server], script: list[float | bytes], failed: str) -> None:
    """Each end that is none is told by its kind, and the run goes on."""
    done = ask(serve(script).port, 3, timeout_s=0.5)
    assert len(done) == 3
    assert all(e.failed.startswith(failed) for e in done)


def test_nobody_listens() -> None:
    """Where nothing listens every exchange ends with no connection."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = ask(port, 3)
    assert [e.failed.partition(":")[0] for e in done] == [wire.NO_CONNECTION] * 3


def test_stopping_ends_what_is_under_way(serve: Callable[..., Server]) -> None:
    """`stop` makes every exchange done, sent or not."""
    server = serve([HEAD, 60.0])
    done: list[Exchange] = []
    line = Wire("127.0.0.1", server.port)
    now = time.monotonic()
    for due in (now, now + 30):
        line.submit(Exchange(framing.request("h", "/", b""), due, due + 60, done.append))
    line.call_at(now + 0.3, line.stop)
    line.run()
    line.close()
    assert {e.failed for e in done} == {wire.ENDED}
    assert sorted(e.sent_s is None for e in done) == [False, True]


def test_https(serve: Callable[..., Server], tmp_path: Path) -> None:
    """The same over TLS, with the certificate checked."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve([HEAD + chunk(b"data: a\n\n"), 0.05, b"0\r\n\r\n"], context)
    trusting = ssl.create_default_context(cafile=str(certificate))
    for exchange in ask(server.port, 3, tls=trusting):
        assert (exchange.failed, [d for _, d in framing.events(exchange.pieces)]) == ("", [b"a"])
    (distrusted,) = ask(server.port, tls=ssl.create_default_context())
    assert distrusted.failed.startswith(wire.NO_CONNECTION)


texts = st.lists(st.binary(min_size=1, max_size=40).filter(lambda t: b"\n" not in t and t == t.strip()), max_size=8)


@settings(deadline=None)
@given(texts, st.data())
def test_framing_does_not_depend_on_where_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    """However the bytes of an answer are cut into pieces, the same events come out, each stamped by its last byte."""
    whole = HEAD + b"".join(chunk(b"data: " + part + b"\n\n") for part in parts) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [(float(b), whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    events = list(framing.events(pieces))
    assert [event for _, event in events] == parts
    assert [at for at, _ in events] == sorted(at for at, _ in events)
    assert framing.is_whole(pieces)
    assert not framing.is_whole([(0.0, whole[:-5])])
