"""A load process that dies takes its own rows with it, and nobody else's."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast

import pytest

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

    def run(self, conversations: tuple[Callable[[], None], ...], _start_s: float) -> None:
        """Have rows, then do it."""
        self.rows = [RequestRecord(user=os.getpid(), round=n, intended_start_s=0.0) for n in range(ROWS)]
        for act in conversations:
            act()


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
    far.recv(1)


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
    plan = SimpleNamespace(stop=None, report_s=60.0, workload=SimpleNamespace(duration_s=60.0))
    shares = [
        SimpleNamespace(plan=plan, conversations=(die,) * (n in lost), start_s=time.monotonic()) for n in range(3)
    ]
    for share in shares:
        share.encoder, share.user_header, share.first, share.concurrency = None, False, {}, None
        share.tells_rows = False
    load = Children(cast("list[Share]", shares), print)
    if "stopped" in death:
        time.sleep(0.5)
        load.stop()  # as when the run is over: what does not hand over in time is killed
    load.listen()
    assert len(load.rows) == ROWS * (3 - len(lost))
    assert len({row.user for row in load.rows}) == 3 - len(lost)
    expected = [f"load process {n + 1} of 3 was lost ({told}), and its requests with it" for n in lost]
    assert sorted(load.lost) == expected
