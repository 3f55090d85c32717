"""What a run says where something of a booted pair is killed, and what is left afterwards: the kill table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from pytest_kvcache.errors import BootError
from pytest_kvcache.runs import containers
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.serving.launchers.docker import ContainerHandle
from pytest_kvcache.serving.nodes.following import NodeHandle
from tests.conformance.launchers import Boot, Case, booted, first_process
from tests.conformance.traces import Traces

#: Limit for an end to be found out, and for what is left to end by itself (s): a silent node is lost after 20 s.
_FOUND_S, _GONE_S = 60.0, 40.0
_TRACES = TypeAdapter(Traces)


def kill_process(boot: Boot, handle: Handle) -> str:
    """Kill the first process of a component."""
    return _kill(first_process(boot, handle))


def kill_agent(boot: Boot, handle: Handle) -> str:
    """Kill the agent that has started a component."""
    if not isinstance(handle, NodeHandle):
        return "has none"
    pid = first_process(boot, handle)
    return _kill(None if pid is None else psutil.Process(pid).ppid())


def kill_container(boot: Boot, handle: Handle) -> str:
    """Have the daemon kill the container of a component."""
    if not isinstance(handle, ContainerHandle):
        return "has none"
    with containers.daemon(handle.host) as client:
        client.containers.get(handle.id).kill()
    return ""


#: What is killed, of which component, and how; a kill returns why there is nothing to kill, "" where it has killed.
KILLS: Mapping[str, tuple[str, Callable[[Boot, Handle], str]]] = {
    "server": ("vllm-1", kill_process),
    "LMCache server": ("lmcache-1", kill_process),
    "balancer": ("router", kill_process),
    "agent": ("vllm-1", kill_agent),
    "container": ("vllm-1", kill_container),
}
PYTEST = "pytest itself"
#: What the plugin's own launchers have none of: nothing is booted to find that out.
_HAS_NONE = {"process": {"agent", "container"}, "docker": {"agent"}, "ray": {"container"}}


def killed(case: Case, what: str) -> str:
    """Return what a run says where something of a booted pair is killed, and what is left after its end.

    Args:
        case: A launcher.
        what: One of `KILLS`.
    """
    component, kill = KILLS[what]
    if what in _HAS_NONE.get(case.name, ()):
        return "has none"
    with booted(case) as boot:
        if none := kill(boot, boot.handle(component)):
            return none
        said = _found_out(boot)
    return f"{said}; {_told(boot.traces.left())}"


def pytest_killed(case: Case, arguments: Sequence[str]) -> str:
    """Return what the next run says once a process with a booted pair was killed, and what is left after that run.

    Args:
        case: The launcher.
        arguments: Those of `python -m tests.conformance` that boot it.
    """
    held = case.folder / "held.json"
    # Whatever folder the child makes goes with that of the case.
    where = ["--hold", str(held), "--folder", str(case.folder)]
    child = subprocess.Popen([sys.executable, "-m", "tests.conformance", *where, *arguments])
    try:
        deadline = time.monotonic() + 2 * case.boot_s
        while not held.exists():
            assert child.poll() is None, "the child did not boot"
            assert time.monotonic() < deadline, "the child did not boot in time"
            time.sleep(0.2)
    finally:
        child.kill()
        child.wait()
    traces = _TRACES.validate_json(held.read_bytes())
    said: list[str] = []
    RunSession(case.home, case.folder / "runs", said.append).close()
    lines = [line.replace(traces.run, "ID") for line in said if traces.run in line]
    return f"next run: {' '.join(lines) or 'says nothing'}; {_told(traces.left_after(_GONE_S))}"


def hold(case: Case, path: Path) -> None:
    """Boot a pair, write what it has to a file, and serve until this process is killed."""
    with booted(case) as boot:
        partial = path.with_suffix(".partial")
        partial.write_bytes(_TRACES.dump_json(boot.traces))
        partial.rename(path)
        signal.pause()


def _kill(pid: int | None) -> str:
    if pid is None:
        return "not tried: on another machine"
    os.kill(pid, signal.SIGKILL)
    return ""


def _found_out(boot: Boot) -> str:
    deadline = time.monotonic() + _FOUND_S
    while time.monotonic() < deadline:
        try:
            boot.check_alive()
        except BootError as error:
            # Names and addresses of nodes are those of the machine on which the table was made.
            return re.sub(r"node \S+ \([^)]*\)", "node NODE", error.what)
        time.sleep(0.1)
    return "FAILS: not found out"


def _told(left: Sequence[str]) -> str:
    return f"FAILS, left: {', '.join(left)}" if left else "nothing left"
