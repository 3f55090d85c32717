"""What a boot has on this machine while it is up, and what of it is still there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from pytest_kvcache.runs import containers, processes
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.nodes.home import node_home
from pytest_kvcache.serving.pair import ServingPair

#: Folders that components, and a cluster that was made for the boot, have in their environment.
_NAMED_BY = ("TMPDIR", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class Traces:
    """Everything that a boot must not leave, in a form that another process can read.

    Args:
        run: Id of the run.
        home: Folder of journals.
        scratch: Folders of temporary files: the run's own, and that of each node's agent.
        folders: Folders of the tier.
        urls: Where something listens.
        shared_memory: Shared-memory files by inode.
        docker: Daemon that has containers of the run, "" for none.
    """

    run: str
    home: Path
    scratch: tuple[Path, ...]
    folders: tuple[Path, ...]
    urls: tuple[str, ...]
    shared_memory: dict[str, int]
    docker: str

    def processes(self) -> list[psutil.Process]:
        """Return the processes, in whatever container or on whatever node of this machine, that the boot started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                named = {process.environ().get(name, "") for name in _NAMED_BY}
                if process.pid != os.getpid() and any(_is_below(each, self.scratch) for each in named):
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """Return what is still there, a line each."""
        journals = [self.home / "journal" / f"{self.run}.json"]
        journals += [node_home(self.home) / "journal" / f"{_run_of(scratch)}.json" for scratch in self.scratch]
        return [
            *(f"process {' '.join(_words(process))[:80]}" for process in self.processes()),
            *(f"listener {url}" for url in self.urls if _listens(url)),
            *(f"{path}" for path in (*self.scratch, *self.folders, *journals) if path.exists()),
            *(f"{path}" for path, inode in self.shared_memory.items() if _inode(path) == inode),
            *(f"container {name}" for name in containers_of(self.run, self.docker)),
        ]

    def left_after(self, seconds: float) -> list[str]:
        """Return what is still there once nothing is, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


def traces_of(run: RunSession, pair: ServingPair) -> Traces:
    """Return what a running pair has on this machine."""
    plan = pair.plan
    scratch = {run.scratch, *(Path(c.env["TMPDIR"]) for c in plan.components if "TMPDIR" in c.env)}
    urls = (*plan.server_urls.values(), *plan.metrics_urls.values(), plan.base_url)
    found = Traces(
        run=run.id,
        home=run.home,
        scratch=tuple(sorted(scratch)),
        folders=plan.tier.folders,
        urls=urls if plan.standing is None else (),
        shared_memory={},
        docker=run.journal.record.docker,
    )
    segments = processes.shared_memory(found.processes())
    return Traces(**{**vars(found), "shared_memory": segments})


def containers_of(run: str, docker: str) -> list[str]:
    """Return the ids of the containers that have a run's label, none where it has no daemon."""
    if not docker:
        return []
    with containers.daemon(docker) as client:
        label = {"label": f"{containers.LABEL}={run}"}
        return [each.id for each in client.containers.list(all=True, filters=label, ignore_removed=True)]


def node_leader(home: Path, scratch: Path, component: str) -> int | None:
    """Return the first process of a component that an agent of this machine has started, None where none has.

    Args:
        home: Folder of journals.
        scratch: Folder of the agent's temporary files.
        component: Name of the component.
    """
    path = node_home(home) / "journal" / f"{_run_of(scratch)}.json"
    if not path.exists():
        return None
    leaders = json.loads(path.read_text(encoding="utf-8"))["leaders"]
    return next((int(each["pid"]) for each in leaders if Path(each["log"]).stem == component), None)


def _run_of(scratch: Path) -> str:
    return scratch.name.removeprefix("kvc-")


def _is_below(path: str, folders: tuple[Path, ...]) -> bool:
    return bool(path) and any(Path(path).is_relative_to(folder) for folder in folders)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return [str(process.pid)]


def _inode(path: str) -> int | None:
    try:
        return Path(path).stat().st_ino
    except OSError:
        return None


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1):
            return True
    except OSError:
        return False
