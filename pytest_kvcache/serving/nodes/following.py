"""Brings the output of components on nodes into the run's logs while they run, and knows whether they live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.errors import BootError, KvCacheError
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes.facts import AgentFacts, Progress

#: How often an agent is asked (s). Each answer costs its node about a millisecond of a processor.
_EVERY_S = 1.0
#: Limit for an agent to answer: a network that swallows packets ends no connection (s).
SILENCE_S = 20.0

Ask = Callable[[Mapping[str, int]], Progress]


@dataclass
class Followed:
    """The components of one agent.

    Args:
        facts: The agent.
        ask: Asks it for its progress; raises `KvCacheError` where it does not answer.
        lost: Why the agent is lost, "" while it answers.
    """

    facts: AgentFacts
    ask: Ask
    lost: str = ""
    memory_bytes: int = 0
    _logs: dict[str, Path] = field(default_factory=dict)
    _read: dict[str, int] = field(default_factory=dict)
    _codes: dict[str, int | None] = field(default_factory=dict)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, log: Path) -> None:
        """Follow a component that was just started; output of an earlier one of this name was read already."""
        with self._asking:
            self._logs[name] = log
            self._codes[name] = None

    def code(self, name: str) -> int | None:
        """Return the exit code of a component, None while it runs.

        Raises:
            BootError: The node was lost.
        """
        if self.lost:
            raise BootError(
                f"node {self.facts.node} was lost, with {', '.join(sorted(self._logs)) or name}: {self.lost}",
                where=str(self._logs.get(name, "launcher ray")),
                todo="`ray status` shows which nodes live; what is left there, the next run removes",
            )
        return self._codes.get(name)

    def update(self) -> None:
        """Ask the agent, and write what it brings; a node that does not answer is lost from then on."""
        with self._asking:
            more = not self.lost
            while more:
                try:
                    progress = self.ask(dict(self._read))
                except KvCacheError as error:
                    self.lost = error.what
                    return
                more = False
                for name, piece in progress.output.items():
                    if log := self._logs.get(name):
                        with log.open("ab") as out:
                            out.write(piece)
                    self._read[name] = self._read.get(name, 0) + len(piece)
                    more = more or len(piece) >= 1 << 20
                self.memory_bytes = max(self.memory_bytes, progress.memory_bytes)
            # Last: whoever sees that a component has ended reads its log at once.
            self._codes |= progress.codes


class Follower:
    """Asks all agents again and again, until it is closed.

    Args:
        agents: What is followed.
        every_s: How often.
    """

    def __init__(self, agents: list[Followed], *, every_s: float = _EVERY_S) -> None:
        self.agents = agents
        self._every_s = every_s
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(each,), name="kvcache-node", daemon=True) for each in agents
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ask for nothing more."""
        self._closed.set()
        deadline = time.monotonic() + SILENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _follow(self, agent: Followed) -> None:
        while not self._closed.wait(self._every_s) and not agent.lost:
            agent.update()


@dataclass(frozen=True)
class NodeHandle:
    """A component that was started on a node.

    Args:
        component: The component.
        log: File of the run that its output is brought to.
        agent: The agent that started it.
    """

    component: Component
    log: Path
    agent: Followed

    def exit_code(self) -> int | None:
        """Return None while the component runs; a negative number is the signal that ended it.

        Raises:
            BootError: Its node was lost.
        """
        return self.agent.code(self.component.name)
