"""Watches the machines of agents: their clocks, the run's processes there, and whose work is done beside them.

A machine is a kernel, told by its boot id: nodes may be on one, and on that of pytest. There nothing is counted twice,
and what belongs to the run at one node is no stranger's work to who looks from another.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import BootError, KvCacheError
from pytest_kvcache.load.clocks import RoundTrip, read
from pytest_kvcache.runs.journal import boot_id
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Starter
from pytest_kvcache.serving.nodes.daemons import daemons
from pytest_kvcache.serving.nodes.facts import AgentFacts
from pytest_kvcache.serving.nodes.following import SILENCE_S, Followed
from pytest_kvcache.telemetry.other_work import OtherWork
from pytest_kvcache.telemetry.processes import Owned, pid_namespace

#: Round trips of a comparison of clocks. Samples are a second apart, and one trip takes milliseconds.
_TRIPS = 5


@dataclass(frozen=True)
class WatchedNode:
    """An agent's place, as `ServerNode` has it.

    Args:
        followed: The agent.
        place: Name of its place.
        ask: Calls a method of the agent.
        starter: Starts and ends components at the place that they have.
    """

    followed: Followed
    place: str
    ask: Callable[..., Any]
    starter: Starter

    @property
    def facts(self) -> AgentFacts:
        """What is known of the agent."""
        return self.followed.facts

    @property
    def name(self) -> str:
        """The node, as outputs name it."""
        return self.facts.node

    @property
    def python(self) -> Path:
        """The agent's interpreter."""
        return self.facts.python

    def start(self, component: Component, logs: Path) -> Handle:
        """Start a component on the node.

        Raises:
            BootError: It could not be started, or the node was lost.
        """
        return self.starter.start(component, logs)

    def stop(self, handles: list[Handle]) -> None:
        """End components of the node, and bring the last of their output."""
        self.starter.stop(handles)

    def bring(self) -> None:
        """Bring what components have written; a node that does not answer is lost from then on."""
        self.followed.update()

    def clock_ahead_s(self) -> float:
        """Return the node's CLOCK_MONOTONIC less this machine's, within half of the shortest of some round trips.

        Raises:
            BootError: The node does not answer.
        """
        trips = []
        for _ in range(_TRIPS):
            sent_ns = time.monotonic_ns()
            there_ns: int = self.asked("clock")
            trips.append(RoundTrip(sent_ns, there_ns, there_ns, time.monotonic_ns()))
        return read(trips).offset_ns / 1e9

    def own_pids(self) -> frozenset[int]:
        """Return the numbers of the components' processes on the node.

        Raises:
            BootError: The node does not answer.
        """
        found: frozenset[int] = self.asked("own_pids")
        return found

    def owned(self, namespace: str) -> Owned:
        """Return the run's processes on the node, as they are numbered in a namespace of process numbers.

        Where that is not the node's, or the node does not answer, they are one that cannot be seen.
        """
        if self.facts.pid_namespace == namespace:
            try:
                found: Owned = self.asked("owned")
                return found
            except KvCacheError:
                pass
        return Owned((Leader(0, 0, f"{self.facts.hostname}.log"),))

    def asked(self, method: str, **arguments: Any) -> Any:
        """Call a method of the agent.

        Raises:
            BootError: It failed, or the node was lost.
        """
        if self.followed.lost:
            raise BootError(f"the node was lost: {self.followed.lost}", where=f"node {self.name}")
        return self.ask(method, timeout_s=SILENCE_S, **arguments)


@dataclass
class WatchedNodes:
    """All agents of a boot, as `ServerNodes` has them.

    Args:
        each: The agents' places.
        machine: Boot id of this machine.
        namespace: Namespace of process numbers of this process.
    """

    each: Sequence[WatchedNode]
    machine: str = field(default_factory=boot_id)
    namespace: str = field(default_factory=pid_namespace)
    _failed: dict[str, str] = field(default_factory=dict)

    def owned_here(self) -> Owned:
        """Return the processes of agents on this machine, and those of the cluster itself."""
        here = [node for node in self.each if self.machine and node.facts.boot_id == self.machine]
        return _together([Owned(alone=daemons()), *(node.owned(self.namespace) for node in here)])

    def watch_other_work(self) -> None:
        """Have one agent of each other machine look at it."""
        self._failed = {}
        for name, (first, *others) in self._elsewhere().items():
            beside = _together(node.owned(first.facts.pid_namespace) for node in others)
            try:
                first.asked("watch_other_work", beside=beside)
            except KvCacheError as error:
                self._failed[name] = error.what

    def other_work(self) -> Mapping[str, OtherWork]:
        """End that, and return what each found, by the nodes of the machine."""
        found: dict[str, OtherWork] = {}
        for name, (first, *_) in self._elsewhere().items():
            why = self._failed.get(name, "")
            try:
                found[name] = _unknown(why) if why else first.asked("other_work")
            except KvCacheError as error:
                found[name] = _unknown(error.what)
        return found

    def _elsewhere(self) -> dict[str, list[WatchedNode]]:
        """Return the nodes of each other machine, by their names."""
        machines: dict[str, list[WatchedNode]] = {}
        for number, node in enumerate(self.each):
            if not node.facts.boot_id or node.facts.boot_id != self.machine:
                machines.setdefault(node.facts.boot_id or f"unknown {number}", []).append(node)
        return {", ".join(dict.fromkeys(node.name for node in nodes)): nodes for nodes in machines.values()}


def _together(each: Iterable[Owned]) -> Owned:
    return functools.reduce(operator.or_, each, Owned())


def _unknown(why: str) -> OtherWork:
    return OtherWork(notes=(f"other work cannot be told: {why}",))
