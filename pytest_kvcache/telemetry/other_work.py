"""Whose work the processors did while a load ran: the run's own, the kernel's, or that of other programs.

A load's times are those of the machine that it had. A compiler beside it makes a TTFT of 5 s of one of 0.8 s, and no
figure of the load itself says why.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.telemetry.processes import Key, Look, Ours, Process, allotted_processors, look

#: From look to look. A process that lives shorter may be seen in no look; its parent is then named for it.
PERIOD_S = 2.0
#: So many processes are recorded by name; in a message those that took at least this share of what the first did.
_TOP, _WORTH_NAMING = 5, 0.25
TODO = "run it again on a quiet machine"


@dataclass(frozen=True)
class Worker:
    """A process that is not the run's, with the children that it waited for.

    Args:
        pid: Its number.
        name: Of its program.
        share: Of the allotted processors that it took.
    """

    pid: int
    name: str
    share: float

    def __str__(self) -> str:
        """Number and name."""
        return f"{self.pid} {self.name}"


@dataclass(frozen=True)
class OtherWork:
    """What the processors did while a load ran; `busy_s` is `own_s` + `kernel_s` + `other_s`.

    Args:
        elapsed_s: For how long they were looked at.
        processors: How many are allotted: those of the affinity, or the quota of the control group where that is less.
        busy_s: Processor time of all programs, on all processors that this process may run on.
        own_s: Of the run: pytest, the load, servers, router and storage, with all that they started.
        kernel_s: Of the kernel's threads, which write, send and reclaim memory for whoever asked for it.
        other_s: Of all others.
        share: Of the allotted processors that others took. Where a quota leaves processors to others, only what they
            took beyond those.
        steal_share: Of the processors that the hypervisor took, though there was work.
        pressure_s: For which some task waited for a processor: the run's own tasks too, since the kernel does not tell
            them apart. None where it is not told.
        top: Other processes that took most, those first.
        unnamed_share: What is in `share` and was done by processes that ended between two looks, or that cannot be
            seen from here (another container's).
        unseen: Components of the run whose processes cannot be seen from here: their time is in `other_s`, so that
            nothing can be said of `share`.
        looks: How often it was looked.
        cost_s: Processor time that the looks themselves took; it is in `own_s`.
        notes: Why something of it is not known.
    """

    elapsed_s: float = 0.0
    processors: float = 1.0
    busy_s: float = 0.0
    own_s: float = 0.0
    kernel_s: float = 0.0
    other_s: float = 0.0
    share: float = 0.0
    steal_share: float = 0.0
    pressure_s: float | None = None
    top: tuple[Worker, ...] = ()
    unnamed_share: float = 0.0
    unseen: tuple[str, ...] = ()
    looks: int = 0
    cost_s: float = 0.0
    notes: tuple[str, ...] = ()

    def suspicions(self, most: float) -> list[str]:
        """Return what makes the times of the load doubtful, a line each.

        Args:
            most: Share of the processors that others, or the hypervisor, may take.
        """
        found = []
        if self.share > most and not self.unseen:
            found.append(f"other processes took {percent(self.share)} of the processors: {self._named()}; {TODO}")
        if self.steal_share > most:
            found.append(f"the hypervisor took {percent(self.steal_share)} of the processors (steal); {TODO}")
        return found

    def _named(self) -> str:
        least = _WORTH_NAMING * max([self.unnamed_share, *(each.share for each in self.top)])
        names = [str(each) for each in self.top if each.share >= least]
        if self.unnamed_share >= least or not names:
            names.append("processes that ended at once or cannot be seen from here")
        return ", ".join(names)


def percent(share: float) -> str:
    """Return a share for people: whole percent, one digit where that would be none."""
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"


@dataclass
class Account:
    """Adds up what was done from look to look (pure).

    Args:
        processors: How many are allotted.
        available: On how many this process may run; more than are allotted where a quota limits it.
    """

    processors: float
    available: int
    _first: Look | None = None
    _last: Look | None = None
    _used_s: defaultdict[Key, float] = field(default_factory=lambda: defaultdict(float))
    _known: dict[Key, Process] = field(default_factory=dict)
    _own: set[Key] = field(default_factory=set)
    _looks: int = 0

    def add(self, now: Look) -> None:
        """Take in a look, later than those before."""
        if self._last is not None:
            most_s = max(0.0, now.monotonic_s - self._last.monotonic_s) * max(1, self.available)
            for key, used_s in _used_between(self._last.processes, now.processes).items():
                self._used_s[key] += min(used_s, most_s)
        self._known |= now.processes
        self._own |= now.own
        self._first, self._last = self._first or now, now
        self._looks += 1

    def result(self, *, unseen: Iterable[str] = (), cost_s: float = 0.0, notes: Iterable[str] = ()) -> OtherWork:
        """Return what was done between the first look and the last.

        Args:
            unseen: As in `OtherWork`.
            cost_s: As in `OtherWork`.
            notes: As in `OtherWork`.
        """
        first, last, said = self._first, self._last, list(notes)
        if first is None or last is None or last.monotonic_s <= first.monotonic_s:
            return OtherWork(processors=self.processors, looks=self._looks, cost_s=cost_s, notes=tuple(said))
        elapsed_s = last.monotonic_s - first.monotonic_s
        own_s = sum(s for key, s in self._used_s.items() if key in self._own)
        kernel_s = sum(s for key, s in self._used_s.items() if key not in self._own and self._known[key].kernel)
        others = {k: s for k, s in self._used_s.items() if s > 0 and k not in self._own and not self._known[k].kernel}
        if first.busy_s is None or last.busy_s is None:
            busy_s = own_s + kernel_s + sum(others.values())
            said.append("/proc/stat counts nothing here: of others only processes that can be seen are known")
        else:
            busy_s = max(0.0, last.busy_s - first.busy_s)
        # The kernel counts processors' time by sampling and processes' time exactly, so the parts may exceed the whole.
        own_s = min(own_s, busy_s)
        kernel_s = min(kernel_s, busy_s - own_s)
        other_s = busy_s - own_s - kernel_s
        left_s = elapsed_s * max(0.0, self.available - self.processors)
        share = min(1.0, max(0.0, other_s - left_s) / (elapsed_s * self.processors))
        top, named = _named(others, self._known, other_s=other_s, share=share)
        return OtherWork(
            elapsed_s=elapsed_s,
            processors=self.processors,
            busy_s=busy_s,
            own_s=own_s,
            kernel_s=kernel_s,
            other_s=other_s,
            share=share,
            steal_share=min(1.0, max(0.0, last.steal_s - first.steal_s) / (elapsed_s * max(1, self.available))),
            pressure_s=None
            if first.pressure_s is None or last.pressure_s is None
            else max(0.0, last.pressure_s - first.pressure_s),
            top=top,
            unnamed_share=max(0.0, share - named),
            unseen=tuple(unseen),
            looks=self._looks,
            cost_s=cost_s,
            notes=tuple(said),
        )


def _used_between(before: Mapping[Key, Process], after: Mapping[Key, Process]) -> dict[Key, float]:
    """Return the processor time of each process that is still there, with that of children that ended in between.

    A child that was waited for adds all of its life's time to its parent's: what was seen of it before is taken off.
    """
    by_pid = {process.pid: process for process in before.values()}
    seen_s: defaultdict[Key, float] = defaultdict(float)
    for key, process in before.items():
        if key in after:
            continue
        heir, passed = process, {key}
        while heir.key not in after:
            parent = by_pid.get(heir.parent_pid)
            if parent is None or parent.key in passed:
                break
            passed.add(parent.key)
            heir = parent
        else:
            seen_s[heir.key] += process.used_s + process.children_s
    used = {}
    for key, process in after.items():
        old = before.get(key)
        own_s = process.used_s - (old.used_s if old else 0.0)
        of_children_s = process.children_s - (old.children_s if old else 0.0) - seen_s[key]
        used[key] = max(0.0, own_s) + max(0.0, of_children_s)
    return used


def _named(
    others: Mapping[Key, float], known: Mapping[Key, Process], *, other_s: float, share: float
) -> tuple[tuple[Worker, ...], float]:
    """Return who took most, and the share that all of `others` took: together never more than `share`."""
    whole_s = max(other_s, sum(others.values()))
    if whole_s <= 0 or share <= 0:
        return (), 0.0
    by_time = sorted(others.items(), key=lambda item: -item[1])
    top = tuple(Worker(key[0], known[key].name, share * used_s / whole_s) for key, used_s in by_time[:_TOP])
    return top, share * sum(others.values()) / whole_s


class Watch:
    """Looks at the machine in the background. Nothing of it fails a run: what cannot be read is a note.

    Args:
        leaders: Returns the leaders of the run's components at present.
        alone: Processes that are the run's without what they start.

    Attributes:
        found: What was done, once the watch is over.
    """

    def __init__(self, leaders: Callable[[], Iterable[Leader]], alone: frozenset[Key] = frozenset()) -> None:
        self.found = OtherWork()
        self._ours = Ours(leaders, alone=alone)
        self._account = Account(allotted_processors(), available=len(os.sched_getaffinity(0)))
        self._unseen = self._ours.unseen()
        self._notes: list[str] = []
        self._cost_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kvcache-other-work", daemon=True)

    def start(self) -> None:
        """Take the first look, and go on in the background."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Take the last look."""
        self._stop.set()
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._look()
        self.found = self._account.result(unseen=self._unseen, cost_s=self._cost_s, notes=self._notes)

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._look()

    def _look(self) -> None:
        if self._notes:
            return
        before_s = time.thread_time()
        try:
            self._account.add(look(self._ours))
        except (OSError, ValueError, IndexError) as error:
            self._notes.append(f"other work cannot be told: {error}")
        self._cost_s += time.thread_time() - before_s


@contextmanager
def watched(leaders: Callable[[], Iterable[Leader]], alone: frozenset[Key] = frozenset()) -> Iterator[Watch]:
    """Look at the machine while the body runs, however it ends.

    Args:
        leaders: Returns the leaders of the run's components at present.
        alone: Processes that are the run's without what they start.
    """
    watch = Watch(leaders, alone)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
