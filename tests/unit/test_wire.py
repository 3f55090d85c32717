"""The wire: absolute times, the kernel's stamps, framing, and every way in which a connection ends."""

from __future__ import annotations

import resource
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_kvcache.client import connection, event_stream, framing, wire
from pytest_kvcache.client.addresses import answering
from pytest_kvcache.client.open_files import raise_open_files
from pytest_kvcache.client.wire import Exchange, Wire

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def status(pieces: framing.Pieces) -> int:
    """Return the status of an answer, 0 where its head did not arrive."""
    head = framing.head_of(pieces)
    return head.status if head else 0


class Server:
    """Answers each connection with a script of pauses (s) and bytes.

    Args:
        script: Run for every request on a connection; a negative pause closes it.
        tls: For https.
        answers: So many on a connection; the next request on it finds it closed.
    """

    def __init__(self, script: list[float | bytes], tls: ssl.SSLContext | None = None, answers: int = 1000) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.accepted = 0
        self.written = threading.Event()
        self.written_s: list[float] = []
        self._script, self._tls, self._answers = script, tls, answers
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
                left = self._answers
                while peer.recv(1 << 20) and left:
                    left -= 1
                    for step in self._script:
                        if isinstance(step, bytes):
                            peer.sendall(step)
                            self.written_s.append(time.monotonic())
                            self.written.set()
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

    def start(script: list[float | bytes], tls: ssl.SSLContext | None = None, answers: int = 1000) -> Server:
        servers.append(Server(script, tls, answers))
        return servers[-1]

    yield start
    for server in servers:
        server.socket.close()


def ask(
    port: int,
    count: int = 1,
    *,
    timeout_s: float = 5,
    stall_s: float | None = None,
    tls: ssl.SSLContext | None = None,
    body: bytes = b"{}",
    apart_s: float = 0.05,
    host: str = "127.0.0.1",
) -> list[Exchange]:
    """Send `count` requests and return them when they are over."""
    done: list[Exchange] = []
    line = Wire(host, port, tls)
    start = time.monotonic() + 0.1
    payload = framing.request("h", "/v1/x", body)
    for i in range(count):
        due = start + apart_s * i
        line.submit(Exchange(payload, due, due + timeout_s, done.append, stall_s))
    line.run()
    line.close()
    return done


def test_an_answer_carries_its_arrivals(serve: Callable[..., Server]) -> None:
    """Events come back in order, each with a stamp after the send, and the server's pause between them."""
    server = serve([HEAD + chunk(b"data: a\n\n"), 0.2, chunk(b"data: b\n\n"), 0.05, b"0\r\n\r\n"])
    (exchange,) = ask(server.port)
    (at_a, a), (at_b, b) = event_stream.events(exchange.pieces)
    assert (a, b, exchange.failed, status(exchange.pieces)) == (b"a", b"b", "", 200)
    assert exchange.sent_s is not None
    assert exchange.due_s <= exchange.sent_s <= at_a < at_b
    assert at_b - at_a > 0.19
    assert at_a <= server.written_s[0] + 0.05
    assert at_b <= server.written_s[1] + 0.05


def test_a_request_is_fetched_when_it_is_due(serve: Callable[..., Server]) -> None:
    """A request that is not there from the start is asked for once, when it is due, and is not held afterwards."""
    server = serve([HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"])
    fetched: list[float] = []
    done: list[Exchange] = []

    def fetch() -> bytes:
        fetched.append(time.monotonic())
        return framing.request("h", "/v1/x", b"{}")

    line = Wire("127.0.0.1", server.port)
    due = time.monotonic() + 0.1
    line.submit(Exchange(b"", due, due + 5, done.append, fetch=fetch))
    line.run()
    line.close()
    assert [(each.failed, status(each.pieces), each.payload, each.fetch) for each in done] == [("", 200, b"", None)]
    assert [at >= due for at in fetched] == [True]


def late_s(server: Server) -> float:
    """Return the stamp of an answer, in seconds since it was written, where the loop is kept for 0.1 s after that."""
    done: list[tuple[float, Exchange]] = []

    def keep_the_loop() -> None:
        assert server.written.wait(5)
        time.sleep(0.1)

    line = Wire("127.0.0.1", server.port)
    due = time.monotonic() + 0.1
    line.submit(
        Exchange(framing.request("h", "/", b""), due, due + 9, lambda each: done.append((time.monotonic(), each)))
    )
    line.call_at(due + 0.05, keep_the_loop)
    line.run()
    line.close()
    ((ended_s, exchange),) = done
    assert ended_s - server.written_s[0] >= 0.1
    at = exchange.pieces[0][0]
    assert due < at
    return at - server.written_s[0]


def test_a_busy_loop_delays_no_stamp(serve: Callable[..., Server]) -> None:
    """While something else keeps the loop, the kernel stamps what arrives."""
    assert late_s(serve([0.1, HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"])) < 0.05


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
    assert (status(exchange.pieces), exchange.failed) == (404, "")
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


REFUSAL = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        ([REFUSAL + b"big", -1.0], ""),
        ([0.1, REFUSAL + b"big", 0.1, -1.0], ""),
        ([0.1, REFUSAL, 0.1, b"big", -1.0], ""),
        ([0.1, b"HTTP/1.1 413 Content Too Large\r\n\r\nbig", 0.1, -1.0], wire.NO_CONNECTION),
    ],
    ids=["at once", "later", "in pieces", "of no length"],
)
@pytest.mark.parametrize(
    "slow_s",
    [{}, {"receive": 0.3}, {"flush": 0.3}],
    ids=["quick", "slow to read", "slow to write"],
)
def test_a_refusal_before_the_request_was_read(
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    script: list[float | bytes],
    failed: str,
    slow_s: dict[str, float],
) -> None:
    """A server that answers a long request early, and closes with the rest of it unread, has its answer in the row.

    A busy machine keeps the client from going on after it read, or before it writes, so that the server's close comes
    in between. Where the answer does not say how long it is, a broken connection may have cut it.
    """
    receive, flush = connection.Connection.receive, connection.Connection.flush

    def receive_and_pause(each: connection.Connection) -> tuple[float | None, bytes | None]:
        at, data = receive(each)
        time.sleep(slow_s.get("receive", 0) if data else 0)
        return at, data

    def pause_and_flush(each: connection.Connection) -> None:
        time.sleep(slow_s.get("flush", 0))
        flush(each)

    monkeypatch.setattr(connection.Connection, "receive", receive_and_pause)
    monkeypatch.setattr(connection.Connection, "flush", pause_and_flush)
    server = serve(script)
    (found,) = ask(server.port, body=b"x" * (24 << 20))
    assert (status(found.pieces), found.resent, server.accepted) == (413, False, 1)
    assert b"".join(data for _, data in framing.body_pieces(found.pieces)) == b"big"
    assert found.failed.partition(":")[0] == failed


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


def test_https(serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same over TLS, with the certificate checked, for a name with the dot of the root behind it too."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:kv.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve([HEAD + chunk(b"data: a\n\n"), 0.05, b"0\r\n\r\n"], context)
    trusting = ssl.create_default_context(cafile=str(certificate))
    for exchange in ask(server.port, 3, tls=trusting):
        assert (exchange.failed, [d for _, d in event_stream.events(exchange.pieces)]) == ("", [b"a"])
    (distrusted,) = ask(server.port, tls=ssl.create_default_context())
    assert distrusted.failed.startswith(wire.NO_CONNECTION)
    monkeypatch.setattr(wire, "answering", lambda _host, port: answering("127.0.0.1", port))
    for host, failed in (("kv.example.", ""), ("other.example", wire.NO_CONNECTION)):
        (exchange,) = ask(server.port, tls=trusting, host=host)
        assert exchange.failed[: len(wire.NO_CONNECTION)] == failed


def test_a_stream_that_stalls(serve: Callable[..., Server]) -> None:
    """Silence of `stall_s` ends it, and what arrived before is kept."""
    (exchange,) = ask(serve([HEAD + chunk(b"data: a\n\n"), 60.0]).port, stall_s=0.2)
    assert exchange.failed == "stalled: nothing arrived for 0.2 s"
    assert [data for _, data in event_stream.events(exchange.pieces)] == [b"a"]
    (exchange,) = ask(serve([60.0]).port, stall_s=0.2)
    assert exchange.failed.startswith(wire.STALLED)


def test_a_slow_stream_does_not_stall(serve: Callable[..., Server]) -> None:
    """Silence is counted from the last arrival, however long the whole takes."""
    steps: list[float | bytes] = [HEAD]
    for _ in range(6):
        steps += [0.3, chunk(b"data: a\n\n")]
    (exchange,) = ask(serve([*steps, b"0\r\n\r\n"]).port, stall_s=1)
    assert exchange.failed == ""


def test_what_arrived_unread_is_no_stall(serve: Callable[..., Server]) -> None:
    """A client that was kept from reading does not blame the server."""
    server = serve([0.1, HEAD + chunk(b"data: a\n\n"), 0.4, b"0\r\n\r\n"])
    done: list[Exchange] = []
    line = Wire("127.0.0.1", server.port)
    due = time.monotonic() + 0.1
    line.submit(Exchange(framing.request("h", "/", b""), due, due + 5, done.append, stall_s=1))
    line.call_at(due + 0.05, lambda: time.sleep(1.5))
    line.run()
    line.close()
    assert done[0].failed == ""


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 2OO OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * framing.HEAD_MAX_BYTES,
        HEAD + b"data: not chunked\r\n\r\n",
        HEAD + b"-5\r\n\r\n",
        HEAD + b"a" * (framing.HEAD_MAX_BYTES + 10) + b"\r\n\r\n",
    ],
    ids=["garbage", "status", "length", "negative length", "field", "endless head", "no size", "size", "endless size"],
)
def test_malformed_answers(serve: Callable[..., Server], answer: bytes) -> None:
    """What is not HTTP fails its exchange at once, and the run goes on."""
    done = ask(serve([answer, 60.0]).port, 2, timeout_s=3)
    assert [e.failed.partition(":")[0] for e in done] == [wire.MALFORMED] * 2


def test_interim_responses_are_passed_over(serve: Callable[..., Server]) -> None:
    """100 Continue and its like are no answer; the one after them is."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    whole = HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"
    for script in (
        [interim + whole],
        [interim, 0.05, whole],
        [interim[:30], 0.05, interim[30:] + whole[:9], 0.05, whole[9:]],
    ):
        (exchange,) = ask(serve(script).port)
        assert (exchange.failed, status(exchange.pieces)) == ("", 200)
        assert [data for _, data in event_stream.events(exchange.pieces)] == [b"a"]


@pytest.mark.parametrize(
    ("head", "body", "accepted"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"data: a\n\n", 3),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"data: a\n\n", 3),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\n", b"data: a\n\n", 3),
        (HEAD[:-2] + b"Connection: Close\r\n\r\n", chunk(b"data: a\n\n") + b"0\r\n\r\n", 3),
    ],
    ids=["ends at the close", "HTTP/1.0", "length", "chunked"],
)
def test_connections_that_are_not_kept(serve: Callable[..., Server], head: bytes, body: bytes, accepted: int) -> None:
    """An answer may end with its connection, which is then not used again."""
    server = serve([head, 0.01, body, 0.01, -1.0])
    for exchange in ask(server.port, 3):
        assert (exchange.failed, exchange.resent) == ("", False)
        assert [data for _, data in event_stream.events(exchange.pieces)] == [b"a"]
    assert server.accepted >= accepted


def test_a_length_that_is_not_reached(serve: Callable[..., Server]) -> None:
    """Where the head says how long the body is, a close before that is no end."""
    (exchange,) = ask(serve([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata", 0.05, -1.0]).port)
    assert exchange.failed.startswith(wire.CLOSED)


def test_trailers_and_answers_without_a_body(serve: Callable[..., Server]) -> None:
    """Trailers end with an empty line, 204 with its head; the connection is used again after both."""
    for script in (
        [HEAD + chunk(b"data: a\n\n") + b"0\r\nX-Time: 5\r\n", 0.02, b"X-More: 6\r\n\r\n"],
        [b"HTTP/1.1 204 No Content\r\n\r\n"],
        [HEAD + chunk(b"data: a\r\n\r\n"), 0.02, chunk(b"data: b\r\n\r\n") + b"0\r", 0.02, b"\n\r\n"],
    ):
        server = serve(script)
        assert [e.failed for e in ask(server.port, 4)] == [""] * 4
        assert server.accepted <= 3


def test_a_connection_closed_while_idle(serve: Callable[..., Server]) -> None:
    """The server's keep-alive timeout costs a new connection and nothing else."""
    server = serve([HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n", 0.01, -1.0])
    assert [(e.failed, e.resent) for e in ask(server.port, 4)] == [("", False)] * 4


def test_a_close_that_crosses_a_request(serve: Callable[..., Server]) -> None:
    """A kept connection that closes on a request before any answer: sent again on a new one, once, and said."""
    server = serve([HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"], answers=1)
    done = ask(server.port, 6)
    assert [e.failed for e in done] == [""] * 6
    assert any(e.resent for e in done)
    assert not done[0].resent
    assert all(e.sent_s is not None and e.sent_s <= e.pieces[0][0] for e in done)


def test_a_new_connection_that_closes_is_a_failure(serve: Callable[..., Server]) -> None:
    """Nothing is sent twice where the connection was not used before."""
    assert [(e.failed[:17], e.resent) for e in ask(serve([], answers=0).port, 3)] == [(wire.CLOSED, False)] * 3


def test_unasked_bytes_on_an_idle_connection(serve: Callable[..., Server]) -> None:
    """A server that tells of its timeout (408) before it closes does not spoil the next answer."""
    server = serve([HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n", 0.01, b"HTTP/1.1 408 Timeout\r\n\r\n", 0.5])
    assert [status(e.pieces) for e in ask(server.port, 3)] == [200] * 3


def test_the_send_stamp_is_of_the_last_byte() -> None:
    """A request that the network takes slowly is sent when its last byte left, told by a stamp that comes later."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    server.bind(("127.0.0.1", 0))
    server.listen()
    body, read_s = b"x" * (8 << 20), []

    def serve_slowly() -> None:
        peer, _ = server.accept()
        with peer:
            time.sleep(0.4)
            left = len(framing.request("h", "/v1/x", body))
            while left:
                left -= len(peer.recv(1 << 16))
            read_s.append(time.monotonic())
            peer.sendall(HEAD + b"0\r\n\r\n")

    threading.Thread(target=serve_slowly, daemon=True).start()
    (exchange,) = ask(server.getsockname()[1], body=body)
    server.close()
    assert exchange.failed == ""
    assert exchange.sent_s is not None
    assert exchange.due_s + 0.25 < exchange.sent_s <= read_s[0] + 0.001 < exchange.pieces[0][0] + 0.01


def test_an_interface_that_stamps_nothing(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not say when the request left, the clock after the send does."""
    monkeypatch.setattr(connection, "_TX", 0)
    (exchange,) = ask(serve([0.05, HEAD + b"0\r\n\r\n"]).port)
    assert exchange.sent_s is not None
    assert exchange.due_s <= exchange.sent_s < exchange.pieces[0][0]


def test_an_old_kernel(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that refuses the flags for sends still stamps what arrives."""
    monkeypatch.setattr(connection, "_OPT_ID_TCP", 1 << 30)
    assert late_s(serve([0.1, HEAD + b"0\r\n\r\n"])) < 0.05


def test_stamps_are_turned_into_the_monotonic_clock() -> None:
    """A stamp of now is now; one that is empty, of the future or of long ago is none."""
    clock = connection.WallClock()
    wall, now = time.time_ns(), time.monotonic()

    def stamp(at_ns: int) -> bytes:
        return struct.pack("@qq", *divmod(at_ns, 1_000_000_000))

    assert clock.monotonic_s(stamp(wall)) == pytest.approx(now, abs=1e-3)
    assert [clock.monotonic_s(stamp(at)) for at in (0, wall + 10**9, wall - 10**11)] == [None] * 3


def test_open_files() -> None:
    """The soft limit goes up to the hard one; a hard limit that is too low is told with its remedies."""
    hard = raise_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    with pytest.raises(OSError, match="ulimit -Hn"):
        raise_open_files(hard + 1)


@pytest.mark.parametrize(
    "last", [[b"data: [DONE]\n\n"], [b"data: [DO", 0.02, b"NE]"], [b'data: {"x":"[DONE]"}\n\ndata: [DONE]\n']]
)
def test_a_server_that_keeps_the_connection_open_after_done(
    serve: Callable[..., Server], last: list[float | bytes]
) -> None:
    """An answer is over a second after its last event, whatever the server does with the connection."""
    server = serve([b"HTTP/1.1 200 OK\r\n\r\n", b"data: a\n\n", *last, 60.0])
    (exchange,) = ask(server.port, timeout_s=20)
    assert exchange.failed == ""
    assert [event for _, event in event_stream.events(exchange.pieces)][-1] == b"[DONE]"


def test_done_within_a_text_ends_nothing(serve: Callable[..., Server]) -> None:
    """A model that writes [DONE] goes on."""
    server = serve([HEAD, chunk(b'data: {"x":"[DONE]"}\n\n'), 1.5, chunk(b"data: b\n\n") + b"0\r\n\r\n"])
    (exchange,) = ask(server.port, timeout_s=20)
    assert [event for _, event in event_stream.events(exchange.pieces)] == [b'{"x":"[DONE]"}', b"b"]


class Closing(Server):
    """Answers the first request of a connection, reads the second, and closes after a while without a word.

    Args:
        after_s: How long it keeps the second request.
    """

    def __init__(self, after_s: float) -> None:
        self.asked = 0
        self._after_s = after_s
        super().__init__([])

    def _serve(self, plain: socket.socket) -> None:
        with plain:
            for last in (False, True):
                if not plain.recv(1 << 20):
                    return
                self.asked += 1
                if last:
                    time.sleep(self._after_s)
                    return
                plain.sendall(HEAD + b"0\r\n\r\n")


@pytest.mark.parametrize(("after_s", "resent"), [(0.0, True), (0.6, False)])
def test_a_request_that_was_taken_is_not_sent_again(after_s: float, resent: bool) -> None:
    """A kept connection that closes at once had not read the request; one that closes later may have acted on it."""
    server = Closing(after_s)
    first, second = ask(server.port, 2, timeout_s=20, apart_s=0.3)  # late enough to find the first connection free
    server.socket.close()
    assert (first.failed, first.resent) == ("", False)
    assert (second.resent, second.failed == "") == (resent, resent)
    assert server.asked == (3 if resent else 2)
