"""The wire in a process of its own: what it hands over, how it ends, and what it never does."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.client import event_stream, framing, remote
from pytest_kvcache.client.exchange import ENDED, NO_CONNECTION, STALLED, Exchange
from pytest_kvcache.client.remote import RemoteWire
from pytest_kvcache.client.wire import Wire
from pytest_kvcache.load.children import Children, Share
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Conversation, Message, Turn
from tests.unit.test_answers import delta, event
from tests.unit.test_wire import HEAD, Server, chunk, serve

__all__ = ["serve"]

FORK = multiprocessing.get_context("fork")
USAGE = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2}) + b"data: [DONE]\n\n"
END = chunk(USAGE) + b"0\r\n\r\n"


class Apart:
    """A remote wire with the process that sends for it.

    Args:
        port: Port of the server.
    """

    def __init__(self, port: int) -> None:
        near, far = socket.socketpair()
        self.sender = FORK.Process(target=self._send, args=(port, near, far), daemon=True)
        self.sender.start()
        far.close()
        self.wire = RemoteWire(near)
        self.done: list[Exchange] = []

    @staticmethod
    def _send(port: int, near: socket.socket, far: socket.socket) -> None:
        near.close()
        wire = Wire("127.0.0.1", port)
        remote.serve(wire, far)
        wire.close()

    def submit(self, body: bytes = b"{}", *, in_s: float = 0.1, stall_s: float | None = None) -> None:
        """Have a request sent."""
        due_s = time.monotonic() + in_s
        payload = framing.request("h", "/v1/x", body)
        self.wire.submit(Exchange(payload, due_s, due_s + 30, self.done.append, stall_s))


@pytest.fixture
def apart() -> Iterator[Callable[[int], Apart]]:
    """Start remote wires, and end them."""
    started: list[Apart] = []

    def start(port: int) -> Apart:
        started.append(Apart(port))
        return started[-1]

    yield start
    for each in started:
        each.wire.close()
        each.sender.join(30)
        assert each.sender.exitcode is not None


def words(exchange: Exchange) -> list[bytes]:
    """Return the events of an answer."""
    return [data for _, data in event_stream.events(exchange.pieces)]


def test_an_answer_comes_with_its_stamps(serve: Callable[..., Server], apart: Callable[[int], Apart]) -> None:
    """What another process sent and received has the times of a wire of one's own."""
    line = apart(serve([0.05, HEAD + chunk(b"data: a\n\n"), 0.2, chunk(b"data: b\n\n"), b"0\r\n\r\n"]).port)
    line.submit()
    line.wire.run()
    (exchange,) = line.done
    (at_a, a), (at_b, b) = event_stream.events(exchange.pieces)
    assert (a, b, exchange.failed, exchange.resent) == (b"a", b"b", "", False)
    assert exchange.sent_s is not None
    assert exchange.due_s <= exchange.sent_s <= at_a < at_b


@pytest.mark.parametrize("count", [1, remote._SLICE - 1, remote._SLICE, 3 * remote._SLICE + 1])
def test_long_answers_come_whole(serve: Callable[..., Server], apart: Callable[[int], Apart], count: int) -> None:
    """However many pieces an answer has, all of them come, in order, and for each of several streams at once."""
    expected = [b"%d" % i for i in range(count)]
    script: list[float | bytes] = [HEAD]
    for word in expected:
        script += [chunk(b"data: %s\n\n" % word), 0.0002]
    line = apart(serve([*script, b"0\r\n\r\n"]).port)
    for _ in range(3):
        line.submit()
    line.wire.run()
    assert [words(each) for each in line.done] == [expected] * 3
    for each in line.done:
        assert [at for at, _ in each.pieces] == sorted(at for at, _ in each.pieces)


def test_long_prompts_arrive_whole(serve: Callable[..., Server], apart: Callable[[int], Apart]) -> None:
    """A request that is larger than any socket's buffer leaves as it was put together."""
    body = os.urandom(3 << 20).hex().encode()
    asked = len(framing.request("h", "/v1/x", body))
    server = socket.create_server(("127.0.0.1", 0))
    line = apart(server.getsockname()[1])
    line.submit(body)
    peer, _ = server.accept()
    read = b""
    while len(read) < asked:
        read += peer.recv(1 << 20)
    peer.sendall(HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n")
    line.wire.run()
    assert read == framing.request("h", "/v1/x", body)
    assert words(line.done[0]) == [b"a"]
    peer.close()
    server.close()


def test_next_turns_are_submitted_meanwhile(serve: Callable[..., Server], apart: Callable[[int], Apart]) -> None:
    """What is submitted when an answer is over is sent too, and `run` waits for it."""
    line = apart(serve([HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"]).port)
    seen: list[Exchange] = []

    def again(exchange: Exchange) -> None:
        seen.append(exchange)
        if len(seen) < 4:
            now = time.monotonic()
            line.wire.submit(Exchange(framing.request("h", "/", b""), now, now + 30, again))

    now = time.monotonic()
    line.wire.submit(Exchange(framing.request("h", "/", b""), now, now + 30, again))
    line.wire.run()
    assert [words(each) for each in seen] == [[b"a"]] * 4


@pytest.mark.parametrize("failed", [STALLED, NO_CONNECTION])
def test_failures_are_told_apart(serve: Callable[..., Server], apart: Callable[[int], Apart], failed: str) -> None:
    """What went wrong on a connection comes back in the words of the wire."""
    server = serve([HEAD, 30.0])
    if failed == NO_CONNECTION:
        server.socket.shutdown(socket.SHUT_RDWR)
        server.socket.close()
    line = apart(server.port)
    line.submit(stall_s=0.2)
    line.wire.run()
    assert [each.failed.split(":")[0] for each in line.done] == [failed]


@pytest.mark.parametrize("how", ["stop", "the sender is killed"])
def test_the_end_ends_all(serve: Callable[..., Server], apart: Callable[[int], Apart], how: str) -> None:
    """When the wire is stopped, or its process is gone, every exchange is over, also one that is submitted later."""
    line = apart(serve([HEAD, 30.0]).port)
    line.submit(in_s=0.0)
    line.submit(in_s=20.0)

    def end() -> None:
        if how == "stop":
            line.wire.stop()
        else:
            os.kill(line.sender.pid or 0, signal.SIGKILL)
        line.submit(b"x" * (1 << 20), in_s=0.0)

    line.wire.call_at(time.monotonic() + 0.3, end)
    line.wire.run()
    assert [each.failed for each in line.done] == [ENDED] * 3


def test_idle_work_waits_for_answers(serve: Callable[..., Server], apart: Callable[[int], Apart]) -> None:
    """What can wait is done, at the latest when all exchanges are over."""
    line = apart(serve([HEAD + b"0\r\n\r\n"]).port)
    done: list[int] = []
    line.submit()
    for number in range(3):
        line.wire.when_idle(functools.partial(done.append, number))
    line.wire.run()
    assert done == [0, 1, 2]


def send(
    port: int,
    folder: Path,
    *,
    answers_return: bool,
    meanwhile: Callable[[Children], None] = lambda _: None,
    first_users_last_s: float = 0.3,
) -> Children:
    """Have two load processes send two conversations of three turns each, and return them when they have ended."""
    workload = MultiRoundQa(
        mode="compat",
        context_tokens=(1,),
        duration_s=30,
        shared_prompt_tokens=1,
        answer_tokens=2,
        users=2,
        rounds=3,
        qps=1,
    )
    plan = LoadPlan(
        base_url=f"http://127.0.0.1:{port}/v1",
        model="m",
        workload=workload,
        context_tokens=1,
        tokenizer_url="http://h",
        rows=folder / "rows",
        summary=folder / "summary",
    )
    encoder = Encoder(plan, {})
    shares = []
    for user, last_s in ((1, first_users_last_s), (2, 0.3)):
        turns = tuple(
            Turn(n, at_s, (Message("user", (f"question {n}",)),), 2) for n, at_s in enumerate((0.1, 0.2, last_s), 1)
        )
        encoder.prepare(turns)
        conversations = (Conversation(user, turns, answers_return),)
        shares.append(Share(plan, conversations, encoder, user_header=False))
    load = Children(shares, lambda _: None)
    load.begin(time.monotonic() + 0.2)
    meanwhile(load)
    load.listen()
    return load


def rows_in_order(load: Children) -> list[RequestRecord]:
    """Return the rows by user and round."""
    return sorted(load.rows, key=lambda row: (row.user, row.round))


@pytest.mark.parametrize("answers_return", [False, True], ids=["exact", "compat"])
def test_nothing_is_decoded_where_it_is_received(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, answers_return: bool
) -> None:
    """The process that receives reads no event, decodes and encodes no JSON and puts no request together."""
    log = tmp_path / "calls"
    for module, name in ((json, "loads"), (json, "dumps"), (event_stream, "typed_events"), (framing, "request")):
        real = getattr(module, name)

        def noted(*args: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {name}\n")
            return real(*args, **more)

        monkeypatch.setattr(module, name, noted)
    pids: dict[str, set[int]] = {}

    def note(load: Children) -> None:
        pids["load"] = {process.pid or 0 for process in load._processes}
        pids["send"] = {process.pid or 0 for process in load._senders}

    server = serve([HEAD, chunk(delta(content="a")), 0.02, chunk(delta(content="b")), END])
    load = send(server.port, tmp_path, answers_return=answers_return, meanwhile=note)
    assert [row.status for row in load.rows] == ["ok"] * 6
    calls = [line.split() for line in log.read_text().splitlines()]
    # Processes that make requests ahead of their time take part as well.
    assert pids["load"] <= {int(pid) for pid, _ in calls}
    assert not pids["send"] & {int(pid) for pid, _ in calls}
    for name in ("loads", "typed_events"):
        assert {int(pid) for pid, each in calls if each == name} >= pids["load"]
    assert load.lost == []


@pytest.mark.parametrize("allowed", [True, False])
def test_senders_have_real_time_priority_where_they_may(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, allowed: bool
) -> None:
    """The load says whether its senders have it; without the right, requests are sent all the same."""
    given: list[tuple[int, int]] = []

    def give(pid: int, policy: int, _param: object) -> None:
        if not allowed:
            raise PermissionError(1, "Operation not permitted")
        given.append((pid, policy))

    monkeypatch.setattr(os, "sched_setscheduler", give)
    server = serve([HEAD, chunk(delta(content="a")), END])
    load = send(server.port, tmp_path, answers_return=False)
    assert [row.status for row in load.rows] == ["ok"] * 6
    assert load.at_once == allowed
    assert given == [(process.pid, os.SCHED_RR) for process in load._senders if allowed]


def test_a_write_of_several_tokens_is_marked(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Rows say where a server sent the first token together with a later one, and only there."""
    together = serve([HEAD, 0.02, chunk(delta(content="a") + delta(content="b")), 0.02, END])
    alone = serve([HEAD, 0.02, chunk(delta(content="a")), 0.2, chunk(delta(content="b") + delta(content="c")), END])
    marks = [
        {row.first_token_shared for row in send(server.port, tmp_path, answers_return=True).rows}
        for server in (together, alone)
    ]
    assert marks == [{True}, {False}]


def test_a_sender_that_dies_costs_what_had_not_ended(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Rows that ended before are kept, the others say that the run was ended, and the loss is named."""
    server = serve([HEAD, chunk(delta(content="a")), 0.02, chunk(delta(content="b")), END])

    def kill(load: Children) -> None:
        time.sleep(1.0)
        os.kill(load._senders[0].pid or 0, signal.SIGKILL)

    load = send(server.port, tmp_path, answers_return=True, meanwhile=kill, first_users_last_s=20.0)
    told = "the sender of load process 1 of 2 was lost (killed by SIGKILL), and its requests that had not ended"
    assert load.lost == [told]
    rows = rows_in_order(load)
    assert [row.status for row in rows if row.user == 2] == ["ok"] * 3
    assert "ok" not in {row.status for row in rows if row.user == 1 and row.round == 3}


def test_a_stopped_load_hands_over_what_it_has(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A load that is stopped has a row for each request, whose senders ended with it."""
    server = serve([HEAD, chunk(delta(content="a")), 30.0])

    def stop(load: Children) -> None:
        time.sleep(0.5)
        load.stop()

    load = send(server.port, tmp_path, answers_return=True, meanwhile=stop)
    assert len(load.rows) == 6
    assert "ok" not in {row.status for row in load.rows}
    assert load.lost == []
    assert [process.exitcode for process in load._senders] == [0, 0]
