"""How late the machine itself is: loops beside a measurement that do nothing but wake and look at the clock.

One process for each processor, bound to it, with real-time priority above that of the client's senders, wakes every
millisecond by a timerfd. No program on the processor can keep it from waking, so that what it is late by is the
kernel's or the hypervisor's: a virtual processor that does not run, an interrupt that takes long. A client's send that
is late by more than this, at a time when this is not late, is late for the client's sake.

Its own work is some ten microseconds a wake, a hundredth of a processor.
"""

from __future__ import annotations

import array
import gc
import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np

from pytest_kvcache.client.timer import Timer

_EVERY_S = 1e-3
#: Above the senders' priority, so that the floor is the machine's and not theirs.
_PRIORITY = 2


@dataclass
class Floor:
    """The machine's own lateness while this is entered.

    Args:
        real_time: Whether all loops had real-time priority; without the right to it, the figures say less.
        due_s: When each wake was due (CLOCK_MONOTONIC), over all processors.
        late_s: How late it was.
    """

    real_time: bool = True
    due_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    late_s: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __enter__(self) -> Floor:
        context = get_context("fork")
        self._loops = []
        for cpu in sorted(os.sched_getaffinity(0)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_loop, args=(cpu, theirs), name=f"floor-{cpu}", daemon=True)
            process.start()
            theirs.close()
            self.real_time = bool(ours.recv()) and self.real_time
            self._loops.append((process, ours))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        due, late = [], []
        for process, ours in self._loops:
            ours.send(None)
            found = np.frombuffer(ours.recv()).reshape(-1, 2)
            due.append(found[:, 0])
            late.append(found[:, 1])
            process.join()
        self.due_s, self.late_s = np.concatenate(due), np.concatenate(late)

    def stall_s(self, begin_s: float, end_s: float) -> float:
        """Return the longest time between two times (CLOCK_MONOTONIC) in which some processor did not run."""
        begins, ends = self.due_s, self.due_s + self.late_s
        within = np.minimum(ends, end_s) - np.maximum(begins, begin_s)
        return max(0.0, float(within.max())) if within.size else 0.0

    def line(self) -> str:
        """Return the floor in words."""
        p50, p99 = (1e3 * float(np.quantile(self.late_s, q)) for q in (0.5, 0.99))
        over = ", ".join(f"{int((self.late_s > ms / 1e3).sum())} over {ms} ms" for ms in (1, 5))
        priority = "" if self.real_time else ", WITHOUT real-time priority"
        return (
            f"floor, {len(self.late_s)} wakes of a bare timer{priority}: late by p50 {p50:.3f} ms, p99 {p99:.3f} ms, "
            f"max {1e3 * float(self.late_s.max()):.3f} ms, {over}"
        )


def _loop(cpu: int, end: Connection) -> None:
    """Wake on one processor until told to stop, and send when each wake was due and how late it was."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.sched_setaffinity(0, {cpu})
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError:
        end.send(False)
    else:
        end.send(True)
    gc.disable()
    found, timer = array.array("d"), Timer()
    os.set_blocking(timer.fd, True)
    due_s = time.monotonic() + _EVERY_S
    looked = 0
    while True:
        timer.arm(due_s)
        timer.read()
        now = time.monotonic()
        found.append(due_s)
        found.append(now - due_s)
        due_s = max(due_s + _EVERY_S, now)
        looked += 1
        if looked % 64 == 0 and end.poll():
            break
    timer.close()
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    end.send(found.tobytes())
