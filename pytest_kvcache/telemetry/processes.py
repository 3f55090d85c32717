"""One look at the processors and at every process of this machine, from `/proc` (proc(5)).

`/proc/PID/stat` is read and no library is asked, because one read of one small file has all that is needed of a
process, its session included, and a look is taken beside what is being measured: 150 processes take it about 3 ms.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.runs.processes import Leader

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
#: Of a process's flags (`include/linux/sched.h`).
_PF_KTHREAD = 0x00200000

#: A process number and its start in clock ticks: a later process of that number is another key.
Key = tuple[int, int]


@dataclass(frozen=True)
class Process:
    """A process at one moment.

    Args:
        pid: Its number.
        start_ticks: When it began, in clock ticks since the machine was started.
        name: Of its program, cut to 15 characters by the kernel.
        parent_pid: Of the process that started it, or that took it over.
        session_id: The number of its session's leader.
        used_s: Processor time of its own threads.
        children_s: Processor time of children that have ended and that it waited for, with theirs.
        kernel: Whether it is a thread of the kernel.
    """

    pid: int
    start_ticks: int
    name: str
    parent_pid: int
    session_id: int
    used_s: float
    children_s: float = 0.0
    kernel: bool = False

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.pid, self.start_ticks


@dataclass(frozen=True)
class Owned:
    """Processes that do a run's work beside those that the run has started on this machine.

    Args:
        leaders: First processes of components: all that they start is the run's too.
        alone: Processes that are the run's, and what they start is not.
    """

    leaders: tuple[Leader, ...] = ()
    alone: frozenset[Key] = frozenset()

    def __or__(self, other: Owned) -> Owned:
        """Return both together."""
        return Owned((*self.leaders, *other.leaders), self.alone | other.alone)


@dataclass(frozen=True)
class Look:
    """The machine at one moment.

    Args:
        monotonic_s: When (CLOCK_MONOTONIC).
        busy_s: For which the processors of this process worked for programs or the kernel, since the machine was
            started, added up; None where that is not told. Interrupts are not in it: nobody is accountable for them.
        steal_s: For which the hypervisor ran something else on them, though there was work.
        pressure_s: For which some task of the machine waited for a processor (`/proc/pressure/cpu`), None where that
            is not told.
        processes: All that can be seen and may run on these processors.
        own: Those of them that belong to the run.
    """

    monotonic_s: float
    busy_s: float | None
    steal_s: float
    pressure_s: float | None
    processes: Mapping[Key, Process]
    own: frozenset[Key]


def parse_process(text: str) -> Process:
    """Return the process of a `/proc/PID/stat`; its program's name, in brackets, may hold anything."""
    head, _, tail = text.rpartition(")")
    pid, _, name = head.partition(" (")
    values = tail.split()  # values[n] is field n + 3 of proc(5)
    return Process(
        pid=int(pid),
        start_ticks=int(values[19]),
        name=name,
        parent_pid=int(values[1]),
        session_id=int(values[3]),
        used_s=(int(values[11]) + int(values[12])) / _TICKS_A_SECOND,
        children_s=(int(values[13]) + int(values[14])) / _TICKS_A_SECOND,
        kernel=bool(int(values[6]) & _PF_KTHREAD),
    )


def parse_processors(text: str, processors: Iterable[int]) -> tuple[float | None, float]:
    """Return for how long these processors were busy and stolen, from `/proc/stat` (s since the machine was started).

    The first is None where nothing is counted, as some containers' own `/proc/stat` has it.
    """
    wanted = {f"cpu{number}" for number in processors}
    busy, steal, counted = 0, 0, 0
    for line in text.splitlines():
        name, *values = line.split()
        if name in wanted:
            ticks = [int(value) for value in values]
            busy += sum(ticks[:3])  # user, nice, system; a guest's time is in user
            steal += ticks[7] if len(ticks) > 7 else 0
            counted += sum(ticks)
    return (busy / _TICKS_A_SECOND if counted else None), steal / _TICKS_A_SECOND


def parse_pressure(text: str) -> float | None:
    """Return for how long some task waited, from `/proc/pressure/cpu` (s), None where there is no such line."""
    for line in text.splitlines():
        kind, *fields = line.split()
        total = dict(each.partition("=")[::2] for each in fields).get("total", "")
        if kind == "some" and total.isdecimal():
            return int(total) / 1e6
    return None


def _outputs(pid: int) -> list[str]:
    """Return the files that are a process's standard output and error, as far as they can be seen."""
    found = []
    for descriptor in ("1", "2"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"{_PROC}/{pid}/fd/{descriptor}").removesuffix(" (deleted)"))  # noqa: PTH115
    return found


@dataclass
class Ours:
    """Knows the processes of a run: its leaders, their sessions and descendants, and what writes to their logs.

    Once known, a process stays known: its parent may end before it does.

    Args:
        leaders: Returns the leaders at present.
        writes_to: Returns the paths of the files that are a process's standard output and error.
        alone: As in `Owned`.
    """

    leaders: Callable[[], Iterable[Leader]]
    writes_to: Callable[[int], Iterable[str]] = _outputs
    alone: frozenset[Key] = frozenset()
    _known: set[Key] = field(default_factory=set)
    _asked: set[Key] = field(default_factory=set)

    def among(self, processes: Mapping[Key, Process]) -> frozenset[Key]:
        """Return which of these processes are the run's, this one included."""
        leaders = {leader.pid: leader for leader in self.leaders() if leader.start_ticks}
        logs = {leader.log for leader in leaders.values()}
        by_pid = {process.pid: process for process in processes.values()}
        found = {key for key in processes if key in self._known or key in self.alone or key[0] == os.getpid()}
        for key, process in processes.items():
            if key in found or process.kernel:
                continue
            leader = leaders.get(process.session_id)
            if leader is not None and process.start_ticks >= leader.start_ticks:
                found.add(key)
            elif key not in self._asked:  # what it writes to is settled when it starts
                self._asked.add(key)
                if logs.intersection(self.writes_to(process.pid)):
                    found.add(key)
        found |= self._descendants(processes, by_pid, found)
        self._known |= {key for key in found if key[0] != os.getpid()}
        return frozenset(found)

    def unseen(self) -> list[str]:
        """Return the names of components whose processes have no number here, as in another container's namespace."""
        return [Path(leader.log).stem for leader in self.leaders() if not leader.start_ticks]

    def _descendants(
        self, processes: Mapping[Key, Process], by_pid: Mapping[int, Process], found: set[Key]
    ) -> set[Key]:
        """Return what descends from `found`; not from this process, whose other children are tests' own programs.

        Nor from those that are the run's alone; what has started these counts for what they start.
        """
        heirless = self.alone | {key for key in found if key[0] == os.getpid()}
        more: set[Key] = set()
        for process in processes.values():
            line, each = [], process
            while each.key in heirless or (each.key not in found and each.key not in more):
                line.append(each.key)
                parent = by_pid.get(each.parent_pid)
                if parent is None or parent.start_ticks > each.start_ticks or parent.key in line:
                    break
                each = parent
            else:
                more.update(line)
        return more


def look(ours: Ours) -> Look:
    """Look at the machine now.

    Raises:
        OSError: `/proc` cannot be read.
    """
    mine = os.sched_getaffinity(0)
    everywhere = len(mine) == os.cpu_count()
    processes = {}
    for name in os.listdir(_PROC):  # noqa: PTH208 - a path for each entry would be half of the cost
        if name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended since
                process = parse_process(_read(f"{_PROC}/{name}/stat"))
                processes[process.key] = process
    own = ours.among(processes)
    if not everywhere:
        processes = {key: each for key, each in processes.items() if key in own or _may_run_on(each.pid, mine)}
    busy_s, steal_s = parse_processors(_read(f"{_PROC}/stat"), mine)
    pressure_s = None
    with contextlib.suppress(OSError):  # kernels before 4.20, or without PSI
        pressure_s = parse_pressure(_read(f"{_PROC}/pressure/cpu"))
    return Look(time.monotonic(), busy_s, steal_s, pressure_s, processes, own)


def pid_namespace() -> str:
    """Return the namespace in which processes have the numbers that this process sees, "" where it is not told."""
    try:
        return os.readlink(f"{_PROC}/self/ns/pid")  # noqa: PTH115 - it names no file
    except OSError:
        return ""


def allotted_processors(groups: Path = _CGROUPS, membership: Path = _PROC / "self" / "cgroup") -> float:
    """Return how many processors this process may use: its affinity, or the quota of a control group if that is less.

    Args:
        groups: Where control groups are mounted.
        membership: Says in which ones this process is (cgroups(7)).
    """
    found = [float(len(os.sched_getaffinity(0)))]
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = groups / "cpu" if controllers else groups
            inner = top / path.lstrip("/")
            found += [_quota(folder) for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return min(found)


def _quota(folder: Path) -> float:
    """Return the processors that a control group may use, infinite where it says nothing."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
            if quota != "max" and int(quota) > 0:
                return int(quota) / int(period)
    return float("inf")


def _may_run_on(pid: int, processors: set[int]) -> bool:
    try:
        return bool(os.sched_getaffinity(pid) & processors)
    except OSError:
        return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
        return file.read()
