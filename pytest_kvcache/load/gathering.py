"""Begins a load on all who send it, and listens until each has handed over its rows: our own processes, or load nodes.

All are ready before the clock starts. It prints how far they are, and ends a run early that has said enough.
"""

from __future__ import annotations

import contextlib
import math
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from pytest_kvcache.load.driver import Progress
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord

_TICK_S = 0.5
_RELAYED_S = 1.0
_ROUNDING_S = 1e-9


@dataclass(frozen=True)
class Told:
    """What one that sends says once a second.

    Args:
        progress: How far it is.
        ended: Rows that have ended since it last spoke; none where nobody needs them before the end.
        all_ended_until_s: All of its requests that were to start before this time have ended.
    """

    progress: Progress
    ended: list[RequestRecord]
    all_ended_until_s: float


class Gathering(ABC):
    """Those who send, and what they say. Other threads put what they hear into `_said`, with the number of who said it.

    Args:
        plan: The plan of the run.
        count: How many send.
        say: Prints a line.
        save_s: Time that each has to hand over its rows after the run was stopped (s).
    """

    def __init__(self, plan: LoadPlan, count: int, say: Callable[[str], None], *, save_s: float) -> None:
        self._plan, self._start_s, self._say, self._save_s = plan, math.nan, say, save_s
        self._progress: dict[int, Progress] = {}
        self._open = set(range(count))
        self._said: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()
        self._give_up_s: float | None = None
        self._ended: list[RequestRecord] = []
        self._all_ended_until_s: dict[int, float] = dict.fromkeys(range(count), 0.0)
        self._looked_at = 0
        self._relayed = 0
        #: Called once a second with what all of them said since.
        self.relay: Callable[[Told], None] | None = None
        self.rows: list[RequestRecord] = []
        self.lost: list[str] = []
        self.stopped_after_rounds: int | None = None
        self.beyond_tokens = 0
        #: Whether senders run as soon as they have something to do, whatever else the processors do.
        self.at_once = True

    def begin(self, start_s: float) -> None:
        """Tell all, who are ready, when the clock starts (CLOCK_MONOTONIC)."""
        self._start_s = start_s
        self._tell_start()

    def stop(self) -> None:
        """Have all hand over the rows that they have. A signal handler may call this."""
        self._give_up_s = time.monotonic() + self._save_s
        self._ask_to_stop()

    def listen(self) -> None:
        """Return when each has handed over its rows, or has ended without doing so."""
        next_report_s = self._start_s + self._plan.report_s
        next_relay_s = self._start_s
        while self._open:
            with contextlib.suppress(queue.Empty):
                self._hear(*self._said.get(timeout=_TICK_S))
            self._stop_if_enough()
            now = time.monotonic()
            if now >= next_report_s:
                next_report_s += self._plan.report_s
                self._report(now - self._start_s)
            if self.relay is not None and now >= next_relay_s:
                next_relay_s = now + _RELAYED_S
                self._pass_on(self.relay)
            if self._give_up_s is not None and now > self._give_up_s:
                self._end_now()
            self._look()
        self._over()
        if self.stopped_after_rounds is not None and self._plan.stop is not None:
            end_s = self.stopped_after_rounds * self._plan.stop.round_s
            cut = [row for row in self.rows if row.intended_start_s >= end_s - _ROUNDING_S]
            self.rows = [row for row in self.rows if row.intended_start_s < end_s - _ROUNDING_S]
            sent = [row for row in cut if row.actual_start_s is not None]
            self.beyond_tokens = sum(row.prompt_tokens or row.intended_prompt_tokens or 0 for row in sent)

    @abstractmethod
    def _tell_start(self) -> None:
        """Tell each `_start_s`; one that is gone is heard to be."""

    @abstractmethod
    def _ask_to_stop(self) -> None:
        """Have each hand over what it has."""

    @abstractmethod
    def _end_now(self) -> None:
        """End those that have not handed over."""

    @abstractmethod
    def _lose(self, number: int) -> None:
        """Note that one ended without handing over its rows."""

    def _look(self) -> None:  # noqa: B027 - not everybody needs it
        """Look after those that send; called at least every half second."""

    def _over(self) -> None:  # noqa: B027 - not everybody needs it
        """Do what is left to do when all have ended."""

    def _take(self, number: int, rows: list[RequestRecord]) -> None:  # noqa: ARG002 - nodes have clocks of their own
        """Take the rows that one hands over at its end."""
        self.rows += rows

    def _hear(self, number: int, said: object) -> None:
        if isinstance(said, Told):
            self._progress[number] = said.progress
            self._ended += said.ended
            self._all_ended_until_s[number] = said.all_ended_until_s
            return
        if number not in self._open:
            return
        self._open.discard(number)
        if isinstance(said, list):
            self._take(number, said)
        else:
            self._lose(number)

    def _pass_on(self, relay: Callable[[Told], None]) -> None:
        fresh = self._ended[self._relayed :]
        self._relayed = len(self._ended)
        until_s = min(self._all_ended_until_s.values())
        relay(Told(sum(self._progress.values(), Progress()), fresh, until_s))

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

    def _report(self, elapsed_s: float) -> None:
        p = sum(self._progress.values(), Progress())
        mean = f"{p.ttft_sum_s / p.finished:.3f} s" if p.finished else "-"
        self._say(
            f"{elapsed_s:.0f} of {self._plan.workload.duration_s:.0f} s: {p.finished} finished, {p.failed} failed, "
            f"mean TTFT {mean}, {p.sent / elapsed_s:.2f} answers/s"
        )
