"""Find and end the processes of a run, and nobody else's.

Every component is started as the leader of a session of its own, with its output in a log file of the run. Session and
output are inherited by all that the component starts (vLLM's engine core and workers rename themselves and overwrite
their environment, so names and variables do not identify them). A process belongs to a run when its output goes
to one of the run's log files, or when it is in the session of a leader that the run recorded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_SHM = "/dev/shm/"  # noqa: S108 - the kernel's own name for it
_POLL_S = 0.05


@dataclass(frozen=True)
class Leader:
    """The first process of a component.

    Args:
        pid: Id of the process, and of its session.
        start_ticks: When the process began, in clock ticks since the machine was started. This tells it from a later
            process of the same id, and setting the clock does not change it. 0 where the process had ended already.
        log: Path of the file that its output goes to.
    """

    pid: int
    start_ticks: int
    log: str


def leader_of(pid: int, log: Path) -> Leader:
    """Return the record of a process that was just started as a session leader."""
    return Leader(pid=pid, start_ticks=start_ticks(pid), log=str(log))


def start_ticks(pid: int) -> int:
    """Return when a process began, in clock ticks (proc(5), field 22 of its stat); 0 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])  # the program's name, in brackets, may hold anything


def is_same(leader: Leader) -> bool:
    """Return whether the process of that number is still the leader: a stranger may have got the number since."""
    return leader.start_ticks > 0 and start_ticks(leader.pid) == leader.start_ticks


def own_pids(leaders: Collection[Leader]) -> frozenset[int]:
    """Return the numbers of leaders' sessions and of all processes in them."""
    return frozenset({each.pid for each in leaders} | {each.pid for each in members(leaders)})


def members(leaders: Iterable[Leader]) -> list[psutil.Process]:
    """Return all living processes of these components."""
    known = list(leaders)
    logs = {leader.log for leader in known}
    sessions = {leader.pid: leader for leader in known}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or not (_writes_to(process.pid, logs) or _in_session(process, sessions)):
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def numbers(processes: Iterable[psutil.Process]) -> str:
    """Return the numbers of processes, for people."""
    return ", ".join(str(process.pid) for process in processes)


def _writes_to(pid: int, logs: set[str]) -> bool:
    for descriptor in ("1", "2"):
        with contextlib.suppress(OSError):
            # Asked of every process of the machine, twenty times a second: a Path would cost more than the question.
            if os.readlink(f"/proc/{pid}/fd/{descriptor}").removesuffix(" (deleted)") in logs:  # noqa: PTH115
                return True
    return False


def _in_session(process: psutil.Process, sessions: dict[int, Leader]) -> bool:
    leader = sessions.get(os.getsid(process.pid))
    return leader is not None and is_same(leader)


def shared_memory(processes: Iterable[psutil.Process]) -> dict[str, int]:
    """Return the shared-memory files that these processes have mapped or open: path → inode.

    The files are found by inode, since the C library makes a named semaphore under another name, which is the one that
    the map of its maker shows.
    """
    inodes: set[int] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
            inodes |= {int(line.split(maxsplit=5)[4]) for line in maps.splitlines() if _SHM in line}
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith(_SHM):
                        inodes.add(descriptor.stat().st_ino)
    with os.scandir(_SHM) as entries:
        return {entry.path: entry.inode() for entry in entries if entry.inode() in inodes}


def remove_shared_memory(segments: dict[str, int]) -> list[str]:
    """Remove the segments that are still the same files; return their paths."""
    removed = []
    for path, inode in segments.items():
        with contextlib.suppress(OSError):
            if Path(path).stat().st_ino == inode:
                Path(path).unlink()
                removed.append(path)
    return removed


def end(leaders: Iterable[Leader], *, grace_s: float) -> list[str]:
    """End all processes of these components: politely, after `grace_s` by force, then their shared memory.

    Args:
        leaders: First processes of the components; those that are gone already do no harm.
        grace_s: Time that the leaders have to end what they started. If no leader is left, all others get SIGTERM too.

    Returns:
        A line for each process that had to be forced.
    """
    known = list(leaders)
    segments = shared_memory(members(known))
    for leader in known:
        with contextlib.suppress(psutil.Error, OSError):
            if is_same(leader):
                psutil.Process(leader.pid).terminate()
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while (alive := members(known)) and time.monotonic() < deadline:
        segments |= shared_memory(alive)
        if not any(is_same(leader) for leader in known):
            # The leaders, which would have ended these processes, are gone: only this signal ends them.
            for process in (each for each in alive if each.pid not in told):
                told.add(process.pid)
                with contextlib.suppress(psutil.Error, OSError):
                    process.terminate()
        time.sleep(_POLL_S)
    forced = []
    for process in alive:
        with contextlib.suppress(psutil.Error, OSError):
            forced.append(f"{process.pid} {process.name()}")
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 2.0
    while members(known) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    remove_shared_memory(segments)
    return forced
