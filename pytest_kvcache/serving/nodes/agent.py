"""Starts, watches and ends components on a node. It knows nothing of the cluster that it was placed by."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.environment import inspect
from pytest_kvcache.engine.models import model_folder
from pytest_kvcache.errors import RunError, SetupError
from pytest_kvcache.home import home
from pytest_kvcache.runs import processes
from pytest_kvcache.runs.journal import boot_id, clean_up_after_the_dead
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.nodes import watchdog
from pytest_kvcache.serving.nodes.daemons import daemons, key_of
from pytest_kvcache.serving.nodes.facts import AgentFacts, Progress, own_version
from pytest_kvcache.serving.nodes.home import node_home
from pytest_kvcache.telemetry.hardware import hardware
from pytest_kvcache.telemetry.memory import MemoryWatch
from pytest_kvcache.telemetry.other_work import OtherWork, Watch
from pytest_kvcache.telemetry.processes import Owned, pid_namespace

#: The most output of a component that one answer carries (bytes).
_PIECE = 1 << 20
_REQUEST_TIMEOUT_S = 120.0


def sweep() -> list[str]:
    """Remove what dead agents have left on this node; return a line for each."""
    said: list[str] = []
    clean_up_after_the_dead(node_home(home()) / "journal", said.append)
    return said


class NodeAgent:
    """A place on a node: its processes, folders, ports and logs.

    Args:
        address: Address of the node within the cluster, on which components listen.
    """

    def __init__(self, address: str) -> None:
        own = node_home(home())
        self._address = address
        self._said: list[str] = []
        self._session = RunSession(own, own / "runs", self._said.append)
        self._session.own_folder(self._session.folder)
        self._pipe = watchdog.start(own / "journal", self._session.id)
        self._starter = ProcessStarter(self._session)
        self._handles: dict[str, Handle] = {}
        self._memory = MemoryWatch(lambda: processes.members(list(self._session.journal.record.leaders)))
        self._starting = threading.Lock()
        self._watch: Watch | None = None

    def facts(self) -> AgentFacts:
        """Return what is to be known of the node."""
        _at_usual_priority()
        gpus = tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
        return AgentFacts(
            hostname=platform.node(),
            address=self._address,
            scratch=self._session.scratch,
            version=own_version(),
            python=Path(sys.executable),
            gpus=gpus,
            niceness=os.getpriority(os.PRIO_PROCESS, 0),
            hardware=hardware(gpus),
            boot_id=boot_id(),
            pid_namespace=pid_namespace(),
        )

    def versions(self, engine: Path, programs: Sequence[str]) -> Mapping[str, str]:
        """Return the versions of an engine environment of this node.

        Args:
            engine: Folder of the environment.
            programs: Programs that it must have.

        Raises:
            SetupError: There is none, it does not work, or a program is missing.
        """
        found = inspect(engine)
        if missing := [name for name in programs if not found.owns(name)]:
            raise SetupError(f"{', '.join(missing)} is missing", where=found.where)
        return found.versions

    def model(self, profile: Profile, engine: Path) -> str:
        """Return what vLLM gets for the profile's model here, linked in the folder in which the processes run.

        Raises:
            SetupError: The model could not be made.
        """
        folder = model_folder(profile, inspect(engine), home())
        if folder is None:
            return profile.model
        link = self._session.scratch / folder.name
        if not link.is_symlink():
            link.symlink_to(folder)
        return folder.name

    def ports(self, count: int) -> tuple[int, ...]:
        """Return ports on which nothing listens here, leased for as long as the agent lives."""
        return tuple(self._session.ports.take(self._address) for _ in range(count))

    def start(self, component: Component) -> None:
        """Start a component, after whatever of the same name was there before."""
        with self._starting:
            _at_usual_priority()
            self._handles[component.name] = self._starter.start(component, self._session.scratch / "logs")

    def progress(self, read: Mapping[str, int]) -> Progress:
        """Return what has become of the components.

        Args:
            read: Bytes of output that are known already, by component.
        """
        codes, output = {}, {}
        for name, handle in list(self._handles.items()):
            # The code is asked first: all that a dead component wrote is then in its log.
            codes[name] = handle.exit_code()
            with contextlib.suppress(OSError), handle.log.open("rb") as stream:
                stream.seek(read.get(name, 0))
                if piece := stream.read(_PIECE):
                    output[name] = piece
        return Progress(codes, output, self._memory.peak_bytes)

    def stop(self, names: Sequence[str]) -> None:
        """End components and all processes that they started, side by side."""
        with self._starting:
            self._session.note_shared_memory()
            self._starter.stop([self._handles[name] for name in names if name in self._handles])

    def note_shared_memory(self) -> None:
        """Record shared memory, in case that the node's processes are killed one by one."""
        self._session.note_shared_memory()

    def clock(self) -> int:
        """Return the node's CLOCK_MONOTONIC (ns)."""
        return time.monotonic_ns()

    def own_pids(self) -> frozenset[int]:
        """Return the numbers of the components' processes, and of their sessions."""
        return processes.own_pids(self._session.leaders)

    def owned(self) -> Owned:
        """Return the processes here that do the run's work: components, this agent, and those of the cluster itself."""
        return Owned(self._session.leaders, daemons() | {key_of(os.getpid())})

    def watch_other_work(self, beside: Owned) -> None:
        """Begin to look at whose work is done on this machine; what an earlier call has begun ends.

        Args:
            beside: Processes of the run that other agents have on this machine.
        """
        self._end_watch()
        self._watch = Watch(lambda: (*self._session.leaders, *beside.leaders), (self.owned() | beside).alone)
        self._watch.start()

    def other_work(self) -> OtherWork:
        """End that, and return what was found."""
        return self._end_watch()

    def _end_watch(self) -> OtherWork:
        watch, self._watch = self._watch, None
        if watch is None:
            return OtherWork()
        watch.stop()
        return watch.found

    def post(self, url: str, body: object, key: str) -> tuple[int, str]:
        """Send a request from this node, for endpoints that serve nobody else; return status and text.

        Args:
            url: A component's address on this node.
            body: What is sent as JSON.
            key: The boot's API key.

        Raises:
            RunError: The component does not answer.
        """
        try:
            with requests.Session() as session:
                session.trust_env = False
                headers = {"Authorization": f"Bearer {key}"}
                response = session.post(url, json=body, headers=headers, timeout=_REQUEST_TIMEOUT_S)
        except requests.RequestException as error:
            raise RunError(str(error), where=url) from None
        return response.status_code, response.text

    def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call a function of this package on the node.

        Args:
            function: Its name as `package.module:function`, within `pytest_kvcache`.
            arguments: By name.
        """
        module, _, name = function.partition(":")
        if not module.startswith("pytest_kvcache."):
            raise ValueError(f"{module} is none of this package's modules")
        return getattr(importlib.import_module(module), name)(**arguments)

    def missing(self, folders: Sequence[Path]) -> list[Path]:
        """Return those of `folders` that this node does not see."""
        return [folder for folder in folders if not folder.is_dir()]

    def close(self) -> list[str]:
        """End and remove everything; return a line for each thing that stays."""
        self._memory.stop()
        self._end_watch()
        with self._starting:
            self._starter.stop(list(self._handles.values()))
            self._session.close()
        os.close(self._pipe)
        return self._said


def _at_usual_priority() -> None:
    """Take back the niceness that Ray gives its workers (15), which servers would inherit; only root may.

    On Linux a niceness is a thread's, and Ray calls an agent in many threads.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
