"""A load process that dies takes its own rows with it, and nobody else's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_kvcache.errors import RunError
from pytest_kvcache.load import children
from pytest_kvcache.load.children import Children, Share
from pytest_kvcache.load.driver import Progress
from pytest_kvcache.load.records import RequestRecord

#: So many rows are more than a pipe holds.
ROWS = 5_000


class Sender:
    """Stands in for the driver: the conversation of a child is what it does before it hands over."""

    def __init__(self, *_: object) -> None:
        self.progress, self.rows = Progress(), [RequestRecord(0, 0, 0.0)]

    def run(self, conversations: tuple[Callable[[], None], ...], begin: Callable[[], float]) -> None:
        """Have rows, then do it."""
        begin()
        self.rows = [RequestRecord(user=os.getpid(), round=n, intended_start_s=0.0) for n in range(ROWS)]
        for act in conversations:
            act()


class Preparing(Sender):
    """Stands in for a driver that has something to prepare: what its conversation does. Its row has what it knows."""

    def run(self, conversations: tuple[Callable[[], None], ...], begin: Callable[[], float]) -> None:
        """Prepare, and note when that was done and when the clock starts."""
        for act in conversations:
            act()
        ready_s = time.monotonic()
        self.rows = [RequestRecord(user=0, round=0, intended_start_s=0.0, due_s=begin(), actual_start_s=ready_s)]


def at_half(act: Callable[[], object], least: int = 0) -> Callable[[], None]:
    """Return what has a child `act` when it has written half of what it sends next."""

    def prepare() -> None:
        write = Connection._send  # type: ignore[attr-defined]

        def send(self: Connection, data: Any, *rest: Any) -> None:
            if len(data) > least:
                os.write(self.fileno(), bytes(data)[: len(data) // 2])
                act()
            write(self, data, *rest)

        Connection._send = send  # type: ignore[attr-defined]

    return prepare


def kill(number: int) -> Callable[[], None]:
    """Return what sends a signal to oneself."""
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    """Raise."""
    raise MemoryError


def stand_by(_plan: object, near: socket.socket, far: socket.socket) -> None:
    """Stand in for what sends, which ends when its load process does."""
    near.close()
    far.send(b"r")
    far.recv(1)


def shares(acts: list[tuple[Callable[[], None], ...]]) -> list[Share]:
    """Return a share for each child, with what its stand-in for a driver does."""
    plan = SimpleNamespace(
        stop=None, report_s=60.0, workload=SimpleNamespace(duration_s=60.0), base_url="http://127.0.0.1:1/v1"
    )
    nothing: dict[str, Any] = {
        "encoder": None,
        "user_header": False,
        "first": {},
        "concurrency": None,
        "tells_rows": False,
    }
    return cast("list[Share]", [SimpleNamespace(plan=plan, conversations=each, **nothing) for each in acts])


DEATHS = {
    "killed before": (kill(signal.SIGKILL), "killed by SIGKILL"),
    "killed halfway": (at_half(kill(signal.SIGKILL), 100), "killed by SIGKILL"),
    "killed in the header": (at_half(kill(signal.SIGKILL)), "killed by SIGKILL"),
    "left halfway": (at_half(lambda: os._exit(0), 100), "exit code 0"),
    "raised halfway": (at_half(fail, 100), "exit code 1"),
    "stopped halfway": (at_half(kill(signal.SIGSTOP), 100), "killed by SIGKILL"),
}


@pytest.mark.parametrize(("death", "lost"), [*((death, (1,)) for death in DEATHS), ("killed halfway", (0, 1, 2))])
def test_a_child_takes_its_own_rows_only(monkeypatch: pytest.MonkeyPatch, death: str, lost: tuple[int, ...]) -> None:
    """Whatever ends a child while it hands over, all rows of the others are there, and it is named."""
    monkeypatch.setattr(children, "Driver", Sender)
    monkeypatch.setattr(children, "_send", stand_by)
    monkeypatch.setattr(children, "_SAVE_S", 1.0)
    die, told = DEATHS[death]
    load = Children(shares([(die,) * (n in lost) for n in range(3)]), print)
    load.begin(time.monotonic())
    if "stopped" in death:
        time.sleep(0.5)
        load.stop()  # as when the run is over: what does not hand over in time is killed
    load.listen()
    assert len(load.rows) == ROWS * (3 - len(lost))
    assert len({row.user for row in load.rows}) == 3 - len(lost)
    expected = [f"load process {n + 1} of 3 was lost ({told}), and its requests with it" for n in lost]
    assert sorted(load.lost) == expected


@pytest.fixture
def preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children whose conversations are what they prepare."""
    monkeypatch.setattr(children, "Driver", Preparing)
    monkeypatch.setattr(children, "_send", stand_by)
    monkeypatch.setattr(children, "_SAVE_S", 1.0)


@pytest.mark.usefixtures("preparing")
def test_the_clock_starts_when_all_are_ready() -> None:
    """However long one of them prepares, the start is told after it, and is the same for all."""
    load = Children(shares([(), (lambda: time.sleep(1.5),), ()]), print)
    start_s = time.monotonic()
    load.begin(start_s)
    load.listen()
    assert [row.due_s for row in load.rows] == [start_s] * 3
    assert all((row.actual_start_s or start_s) < start_s for row in load.rows)
    assert not load.lost


@pytest.mark.usefixtures("preparing")
@pytest.mark.parametrize(
    ("act", "told"),
    [
        (kill(signal.SIGKILL), r"load process 2 of 3 ended before the clock started \(killed by SIGKILL\)"),
        (fail, r"load process 2 of 3 ended before the clock started \(exit code 1\)"),
        (kill(signal.SIGSTOP), r"load process 2 of 3 was not ready within 2 s"),
    ],
    ids=["killed", "raised", "stopped"],
)
def test_a_load_that_is_not_ready_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], told: str
) -> None:
    """A child that dies or hangs while it prepares ends the load by name, before anything is sent; none is left."""
    monkeypatch.setattr(children, "_READY_S", 2.0)
    before = set(multiprocessing.active_children())
    with pytest.raises(RunError, match=told):
        Children(shares([(), (act,), ()]), print)
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.usefixtures("preparing")
def test_children_that_are_told_to_end_before_the_start_end() -> None:
    """A child that waits for a start which never comes ends when it is asked to, as when a load node's session ends."""
    load = Children(shares([(), ()]), print)
    load.stop()
    for child in load._processes:
        child.join(10.0)
        assert child.exitcode == 0
