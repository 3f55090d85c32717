"""The load processes: each has a share of the users, and the parent listens to them.

They are children of the load process (`worker.py`), say once a second how far they are, and hand over their rows at the
end, also when the run was stopped early. Each has a process beside it that sends and receives for it, and that does
nothing else (`client/remote.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from pytest_kvcache.client import remote
from pytest_kvcache.client.wire import Wire
from pytest_kvcache.endpoint.address import host_of
from pytest_kvcache.endpoint.certificates import tls_context
from pytest_kvcache.errors import RunError
from pytest_kvcache.load.ahead import Key
from pytest_kvcache.load.driver import Driver, Progress
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.script import Conversation

#: Time that a child has to hand over its rows after the run was stopped (s).
_SAVE_S = 5.0
_TICK_S = 0.5
_PR_SET_PDEATHSIG = 1
_ROUNDING_S = 1e-9


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
        start_s: When the clock starts (CLOCK_MONOTONIC).
        first: Requests that are made already, of this child and of others.
        concurrency: So many of the child's conversations are under way at a time; None where each begins at its time.
    """

    plan: LoadPlan
    conversations: tuple[Conversation, ...]
    encoder: Encoder
    user_header: bool
    start_s: float
    first: Mapping[Key, bytes] = field(default_factory=dict)
    concurrency: int | None = None


@dataclass(frozen=True)
class _Told:
    """What a child says once a second.

    Args:
        progress: How far the child is.
        ended: Rows that have ended since the child last spoke; none where the run cannot be stopped early.
        all_ended_until_s: All of the child's requests that were to start before this time have ended.
    """

    progress: Progress
    ended: list[RequestRecord]
    all_ended_until_s: float


class Children:
    """The processes that send, and what they say.

    Args:
        shares: One share for each process.
        say: Prints a line.
    """

    def __init__(self, shares: list[Share], say: Callable[[str], None]) -> None:
        self._say = say
        self._plan, self._start_s = shares[0].plan, shares[0].start_s
        self._progress: dict[int, Progress] = {}
        self._open = set(range(len(shares)))
        self._said: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()
        self._give_up_s: float | None = None
        self._ended: list[RequestRecord] = []
        self._all_ended_until_s: dict[int, float] = dict.fromkeys(range(len(shares)), 0.0)
        self._looked_at = 0
        self.rows: list[RequestRecord] = []
        self.lost: list[str] = []
        self.stopped_after_rounds: int | None = None
        self.beyond_tokens = 0
        #: Whether senders run as soon as they have something to do, whatever else the processors do.
        self.at_once = True
        # The children are forked, so that they have all prompts and copy none.
        context = multiprocessing.get_context("fork")
        self._processes, self._senders = [], []
        ends: list[Connection] = []
        for number, share in enumerate(shares):
            ours, theirs = context.Pipe(duplex=False)
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
            ends.append(ours)
        # One thread reads one child, so that a child that stops halfway holds up nobody else.
        for number, end in enumerate(ends):
            threading.Thread(target=self._read, args=(number, end), name=f"read-{number}", daemon=True).start()

    def stop(self) -> None:
        """Have the children hand over the rows that they have."""
        self._give_up_s = time.monotonic() + _SAVE_S
        for child in self._processes:
            child.terminate()

    def listen(self) -> None:
        """Return when each child has handed over its rows, or has ended without doing so."""
        next_report_s = self._start_s + self._plan.report_s
        while self._open:
            with contextlib.suppress(queue.Empty):
                self._hear(*self._said.get(timeout=_TICK_S))
            self._stop_if_enough()
            now = time.monotonic()
            if now >= next_report_s:
                next_report_s += self._plan.report_s
                self._report(now - self._start_s)
            if self._give_up_s is not None and now > self._give_up_s:
                for child in self._processes:
                    child.kill()
        for number, (child, sender) in enumerate(zip(self._processes, self._senders, strict=True), start=1):
            child.join(_SAVE_S)
            sender.join(_SAVE_S)
            if sender.exitcode and child.exitcode == 0:
                self.lost.append(
                    f"the sender of load process {number} of {len(self._processes)} was lost "
                    f"({_ending(sender.exitcode)}), and its requests that had not ended"
                )
        if self.stopped_after_rounds is not None and self._plan.stop is not None:
            end_s = self.stopped_after_rounds * self._plan.stop.round_s
            cut = [row for row in self.rows if row.intended_start_s >= end_s - _ROUNDING_S]
            self.rows = [row for row in self.rows if row.intended_start_s < end_s - _ROUNDING_S]
            sent = [row for row in cut if row.actual_start_s is not None]
            self.beyond_tokens = sum(row.prompt_tokens or row.intended_prompt_tokens or 0 for row in sent)

    def _stop_if_enough(self) -> None:
        rule = self._plan.stop
        if rule is None or self.stopped_after_rounds is not None or self._give_up_s is not None:
            return
        until_s = min(self._all_ended_until_s.values())
        count = rule.whole_rounds(until_s) if until_s < self._plan.workload.duration_s else 0
        if count > self._looked_at:
            self._looked_at = count
            if rule.enough(self._ended, count=count):
                self.stopped_after_rounds = count
                self._say(f"{count} rounds say enough: the run ends early")
                self.stop()

    def _read(self, number: int, end: Connection) -> None:
        """Pass on what a child says, and at the end its rows, or None where it ended without handing them over."""
        said: object = None
        with end:
            while said is None or isinstance(said, _Told):
                try:
                    said = end.recv()
                except Exception:  # a child that dies may leave any part of a message
                    self._said.put((number, None))
                    return
                self._said.put((number, said))

    def _hear(self, number: int, said: object) -> None:
        if isinstance(said, _Told):
            self._progress[number] = said.progress
            self._ended += said.ended
            self._all_ended_until_s[number] = said.all_ended_until_s
            return
        self._open.discard(number)
        if isinstance(said, list):
            self.rows += said
        else:
            child = self._processes[number]
            child.join(_SAVE_S)
            self.lost.append(
                f"load process {number + 1} of {len(self._processes)} was lost ({_ending(child.exitcode)}), and its "
                "requests with it"
            )

    def _report(self, elapsed_s: float) -> None:
        p = sum(self._progress.values(), Progress())
        mean = f"{p.ttft_sum_s / p.finished:.3f} s" if p.finished else "-"
        self._say(
            f"{elapsed_s:.0f} of {self._plan.workload.duration_s:.0f} s: {p.finished} finished, {p.failed} failed, "
            f"mean TTFT {mean}, {p.sent / elapsed_s:.2f} answers/s"
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
    signal.signal(signal.SIGTERM, lambda *_: wire.stop())
    # Whatever ends the parent ends this process too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent ends its children itself
        signal.signal(number, signal.SIG_IGN)
    driver = Driver(share.plan, share.encoder, wire, share.user_header, share.first, share.concurrency)

    def tell() -> None:
        ended, until_s = driver.newly_ended() if share.plan.stop else ([], 0.0)
        end.send(_Told(driver.progress, ended, until_s))
        wire.call_at(time.monotonic() + 1.0, tell)

    wire.call_at(share.start_s, tell)
    driver.run(share.conversations, share.start_s)
    wire.close()
    end.send(driver.rows)
    end.close()


def _send(plan: LoadPlan, near: socket.socket, far: socket.socket) -> None:
    """Be the sender of a load process. It ends when that process closes its end, however that came about."""
    near.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with connected(plan) as wire:
        remote.serve(wire, far)
