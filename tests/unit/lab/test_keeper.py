"""Nothing of a lab is left on the host, however its processes end; a script stands in for the guest's kernel."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.pnfs import network, record
from lab.pnfs.settings import LabSettings

ROOT = Path(__file__).parents[3]
#: Does what a guest does for its lab: says that it is up, has a process of its own, and ends when it is told to.
STAND_IN = """#!/bin/bash
for word; do case $word in LAB_CONTROL=*) control=${word#*=};; esac; done
sleep 600 &
echo ok > "$control/ready.new"; mv "$control/ready.new" "$control/ready"
until [ -e "$control/halt" ]; do sleep 0.05; done
kill %1
"""


#: Of the labs of this process: other tests make theirs beside them.
ID = secrets.token_hex(3)


def cannot_run() -> str:
    """Return why namespaces cannot be made here, "" where they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "namespaces and tap devices are made by root, with ip(8)"
    name = f"kvlab-test-{secrets.token_hex(3)}"
    refused = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False).stderr
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return refused or ("" if Path("/dev/net/tun").exists() else "there is no /dev/net/tun")


@dataclass(frozen=True)
class Running:
    """A keeper with its stand-in for a guest.

    Args:
        runs: Folder of all labs.
        keeper: First half of the keeper.
    """

    runs: Path
    keeper: subprocess.Popen[str]

    @property
    def folder(self) -> Path:
        """The lab's folder."""
        return self.runs / ID

    @property
    def namespace(self) -> str:
        """The lab's namespace."""
        return f"kvlab-{ID}"

    def second(self) -> int:
        """Return the second half of the keeper."""
        found = record.keeper_of(record.read(self.folder))
        assert found is not None
        return found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A lab that is up."""
    if reason := cannot_run():
        pytest.skip(reason)
    kernel = tmp_path / "kernel"
    kernel.write_text(STAND_IN)
    kernel.chmod(0o755)
    told = {
        "id": ID,
        "runs": str(tmp_path / "runs"),
        "settings": LabSettings(memory_mib=512).model_dump(),
        "kernel": str(kernel),
        "root": str(tmp_path),
        "detached": False,
    }
    keeper = subprocess.Popen(
        [sys.executable, "-m", "lab.pnfs.keeper"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper:
        keeper.stdin.write(json.dumps(told) + "\n")
        keeper.stdin.flush()
        assert json.loads(keeper.stdout.readline()) == {"ready": True}
        yield Running(tmp_path / "runs", keeper)
        keeper.stdin.close()
    record.clean_up_after_the_dead(tmp_path / "runs", lambda _: None)


def comes_true(condition: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Return whether a condition holds within a time."""
    until_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.02)
    return condition()


def kill(pid: int) -> None:
    """Kill a process as nobody can hold back."""
    os.kill(pid, signal.SIGKILL)


def test_a_lab_that_is_up_has_a_namespace_with_processes(running: Running) -> None:
    """While a lab is up its namespace has the guest's processes and one wire, and the host's own has neither."""
    assert len(network.pids(running.namespace)) >= 2
    inner = subprocess.run(
        network.inside(running.namespace, ["ip", "-o", "link"]), capture_output=True, text=True, check=True
    )
    assert "tap0" in inner.stdout
    assert "tap0" not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(
        network.inside(running.namespace, ["ip", "route"]), capture_output=True, text=True, check=True
    )
    assert routes.stdout.split()
    assert "default" not in routes.stdout
    assert record.living(running.runs) == [running.folder]


@pytest.mark.parametrize("how", ["driver", "first half", "second half", "guest", "SIGTERM"])
def test_nothing_is_left_however_a_lab_ends(running: Running, how: str) -> None:
    """Whoever is killed, the lab ends by itself: namespace, processes and folder are gone."""
    second, pids = running.second(), network.pids(running.namespace)
    assert running.keeper.stdin is not None
    if how == "driver":
        running.keeper.stdin.close()
    elif how == "SIGTERM":
        os.kill(second, signal.SIGTERM)
    else:
        kernel = next(pid for pid in pids if "kernel" in Path(f"/proc/{pid}/comm").read_text())
        kill({"first half": running.keeper.pid, "second half": second, "guest": kernel}[how])
    assert comes_true(lambda: not network.exists(running.namespace) and not running.folder.exists())
    assert comes_true(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_the_next_lab_cleans_up_after_one_that_was_killed_whole(running: Running) -> None:
    """Where a lab's whole keeper is killed at once, the guest ends too; the next lab removes the rest and says so."""
    pids = network.pids(running.namespace)
    second = running.second()
    os.kill(running.keeper.pid, signal.SIGSTOP)  # so that it cannot clean up before it is killed
    kill(second)
    kill(running.keeper.pid)
    assert comes_true(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert network.exists(running.namespace)
    said: list[str] = []
    record.clean_up_after_the_dead(running.runs, said.append)
    assert said == [f"cleaned up after lab {ID}, which was killed"]
    assert not network.exists(running.namespace)
    assert not running.folder.exists()
