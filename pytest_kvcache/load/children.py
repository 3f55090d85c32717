"""The load processes: each has a share of the users, and the parent listens to them.

They are children of the load process (`worker.py`). Each says when it is ready and then once a second how far it is,
and hands over its rows at the end, also when the run was stopped early. Each has a process beside it that sends and
receives for it, and that does nothing else (`client/remote.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from pytest_kvcache.client import remote
from pytest_kvcache.client.wire import Wire
from pytest_kvcache.endpoint.address import host_of
from pytest_kvcache.endpoint.certificates import tls_context
from pytest_kvcache.errors import RunError
from pytest_kvcache.load.ahead import Key
from pytest_kvcache.load.driver import Driver
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.gathering import Gathering, Told
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.workload.script import Conversation

#: Time that a child has to hand over its rows after the run was stopped (s).
_SAVE_S = 5.0
#: Time that all children have to be ready (s), and how often a child that waits for the start looks around.
_READY_S, _LOOK_S = 60.0, 0.1
#: Said by a sender to its load process, and by that to its parent.
_READY = b"r"
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def connected(plan: LoadPlan) -> Iterator[Wire]:
    """Yield a wire to the plan's server, and close it afterwards.

    Raises:
        RunError: The server's name has no address.
        ConfigError: The environment names certificates that are not there.
    """
    secure = urlsplit(plan.base_url).scheme == "https"
    urls = [urlsplit(url) for url in plan.urls]
    (host, port), *more = [(host_of(url), url.port or (443 if secure else 80)) for url in urls]
    try:
        wire = Wire(host, port, tls_context() if secure else None, more)
    except OSError as error:
        raise RunError(f"cannot be reached: {error.strerror or error}", where=plan.base_url) from None
    try:
        yield wire
    finally:
        wire.close()


@dataclass(frozen=True)
class Share:
    """What one child sends.

    Args:
        plan: The plan of the run, for its limits.
        conversations: The conversations of this child.
        encoder: An encoder that has all texts already.
        user_header: Whether requests name their user.
        first: Requests that are made already, of this child and of others.
        concurrency: So many of the child's conversations are under way at a time; None where each begins at its time.
        tells_rows: Whether the child hands over each row soon after it has ended, and not only at the end.
    """

    plan: LoadPlan
    conversations: tuple[Conversation, ...]
    encoder: Encoder
    user_header: bool
    first: Mapping[Key, bytes] = field(default_factory=dict)
    concurrency: int | None = None
    tells_rows: bool = False


def split(share: Share, count: int) -> list[Share]:
    """Return a share of each of `count` processes: every `count`-th conversation."""
    return [
        replace(
            share,
            conversations=share.conversations[i::count],
            concurrency=None if share.concurrency is None else len(range(i, share.concurrency, count)),
        )
        for i in range(count)
    ]


class Children(Gathering):
    """The processes that send, and what they say. Once it is made, all of them are ready.

    Args:
        shares: One share for each process.
        say: Prints a line.

    Raises:
        RunError: One of them ended before it was ready, or took too long; none is left.
    """

    def __init__(self, shares: list[Share], say: Callable[[str], None]) -> None:
        super().__init__(shares[0].plan, len(shares), say, save_s=_SAVE_S)
        self._tells_rows = shares[0].tells_rows
        # The children are forked, so that they have all prompts and copy none.
        context = multiprocessing.get_context("fork")
        self._processes, self._senders = [], []
        self._ends: list[Connection] = []
        for number, share in enumerate(shares):
            ours, theirs = context.Pipe()
            near, far = socket.socketpair()
            child = context.Process(target=_work, args=(share, theirs, near, far), name=f"load-{number}", daemon=True)
            sender = context.Process(target=_send, args=(share.plan, near, far), name=f"send-{number}", daemon=True)
            for process in (child, sender):
                process.start()
            self.at_once = _runs_at_once(sender.pid or -1) and self.at_once
            # Each end is open in one process alone, so that the end of a process is seen by the other.
            for end in (theirs, near, far):
                end.close()
            self._processes.append(child)
            self._senders.append(sender)
            self._ends.append(ours)
        self._await_ready()
        # One thread reads one child, so that a child that stops halfway holds up nobody else.
        for number, end in enumerate(self._ends):
            threading.Thread(target=self._read, args=(number, end), name=f"read-{number}", daemon=True).start()

    def _await_ready(self) -> None:
        until_s = time.monotonic() + _READY_S
        for number, (child, end) in enumerate(zip(self._processes, self._ends, strict=True), start=1):
            why = f"was not ready within {_READY_S:g} s"
            with contextlib.suppress(EOFError, OSError):
                if end.poll(max(0.0, until_s - time.monotonic())):
                    end.recv()
                    continue
            child.join(_LOOK_S)
            if child.exitcode is not None:
                why = f"ended before the clock started ({_ending(child.exitcode)})"
            for process in (*self._processes, *self._senders):
                process.kill()
                process.join()
            raise RunError(
                f"load process {number} of {len(self._processes)} {why}",
                where=self._plan.base_url,
                todo="see what it printed above, and whether memory or processors of this machine are used up",
            )

    def _tell_start(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):  # it is gone, which the thread that reads it notices
                end.send(self._start_s)

    def _ask_to_stop(self) -> None:
        for child in self._processes:
            child.terminate()

    def _end_now(self) -> None:
        for child in self._processes:
            child.kill()

    def _over(self) -> None:
        for number, (child, sender) in enumerate(zip(self._processes, self._senders, strict=True), start=1):
            child.join(_SAVE_S)
            sender.join(_SAVE_S)
            if sender.exitcode and child.exitcode == 0:
                self.lost.append(
                    f"the sender of load process {number} of {len(self._processes)} was lost "
                    f"({_ending(sender.exitcode)}), and its requests that had not ended"
                )

    def _read(self, number: int, end: Connection) -> None:
        """Pass on what a child says, and at the end its rows, or None where it ended without handing them over."""
        said: object = None
        with end:
            while said is None or isinstance(said, Told):
                try:
                    said = end.recv()
                except Exception:  # a child that dies may leave any part of a message
                    self._said.put((number, None))
                    return
                self._said.put((number, said))

    def _lose(self, number: int) -> None:
        child = self._processes[number]
        child.join(_SAVE_S)
        kept = "its requests that were not handed over yet" if self._tells_rows else "its requests with it"
        self.lost.append(
            f"load process {number + 1} of {len(self._processes)} was lost ({_ending(child.exitcode)}), and {kept}"
        )


def _runs_at_once(pid: int) -> bool:
    """Give a sender real-time priority, and return whether it has it: that takes a right that not everybody has.

    It works for some microseconds at a time, and waits for a processor for milliseconds where others compute: then two
    tokens come in one read, and a request leaves late.
    """
    try:
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    return True


def _ending(code: int | None) -> str:
    if code is None:
        return "it still runs"
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _work(share: Share, end: Connection, near: socket.socket, far: socket.socket) -> None:
    """Be a load process: have a share of the conversations sent, read the answers, and hand over the rows."""
    far.close()
    wire = remote.RemoteWire(near)
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        wire.stop()

    signal.signal(signal.SIGTERM, stop)
    # Whatever ends the parent ends this process too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent ends its children itself
        signal.signal(number, signal.SIG_IGN)
    driver = Driver(share.plan, share.encoder, wire, share.user_header, share.first, share.concurrency)

    def tell() -> None:
        ended, until_s = driver.newly_ended() if share.plan.stop or share.tells_rows else ([], 0.0)
        end.send(Told(driver.progress, ended, until_s))
        wire.call_at(time.monotonic() + 1.0, tell)

    def begin() -> float:
        near.recv(1)  # the sender is ready too, or gone, which shows later
        end.send(_READY)
        while not end.poll(_LOOK_S):
            # Whoever asks to stop a load that has begun has told its start before.
            if stopped.is_set() and not end.poll():
                sys.exit()
        start_s: float = end.recv()
        wire.call_at(start_s, tell)
        return start_s

    driver.run(share.conversations, begin)
    wire.close()
    end.send(driver.rows)
    end.close()


def _send(plan: LoadPlan, near: socket.socket, far: socket.socket) -> None:
    """Be the sender of a load process. It ends when that process closes its end, however that came about."""
    near.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with connected(plan) as wire:
        far.sendall(_READY)
        remote.serve(wire, far)
