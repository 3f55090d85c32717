"""The processes of a cluster itself on this node, which are there so that servers can be."""

from __future__ import annotations

import contextlib

import psutil

from pytest_kvcache.runs.processes import start_ticks
from pytest_kvcache.telemetry.processes import Key

#: Programs of Ray, and the names that some of its processes give themselves.
_PROGRAMS = frozenset({"raylet", "gcs_server"})
_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray-dashboard")
_SCRIPTS = ("/ray/dashboard/", "/ray/autoscaler/", "/ray/_private/log_monitor.py", "/ray/_private/runtime_env/agent/")


def daemons() -> frozenset[Key]:
    """Return the processes of Ray itself; workers, in which anybody's programs run, are none of them."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() in _PROGRAMS or _is_daemon(process.cmdline()):
                found.add(key_of(process.pid))
    return frozenset(found)


def key_of(pid: int) -> Key:
    """Return what tells a process of this machine from a later one of the same number."""
    return pid, start_ticks(pid)


def _is_daemon(words: list[str]) -> bool:
    # What comes later are arguments: a raylet's name the programs of workers.
    return any(word.startswith(_TITLES) or any(each in word for each in _SCRIPTS) for word in words[:3])
