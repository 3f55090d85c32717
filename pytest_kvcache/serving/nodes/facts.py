"""What agents and pytest tell each other, as data that goes over a pipe and over Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path


def own_version() -> str:
    """Return the version of this package, as it is installed here."""
    return version("pytest-kvcache")


@dataclass(frozen=True)
class AgentFacts:
    """An agent, and the node that it is on.

    Args:
        hostname: Name of the node.
        address: Address of the node within the cluster.
        scratch: Folder of the agent's temporary files there.
        version: Version of pytest-kvcache there.
        python: Interpreter that the agent runs in, which has this package.
        gpus: GPUs that the cluster has given the agent, as `CUDA_VISIBLE_DEVICES` names them.
        niceness: Scheduling priority of the agent, which servers inherit; 0 is the usual one.
        hardware: Processor, cores, memory and GPUs of the node.
        boot_id: Its kernel's id of the present start, by which nodes on one machine are known; "" where none is told.
        pid_namespace: Where the numbers of its processes hold.
    """

    hostname: str
    address: str
    scratch: Path
    version: str
    python: Path
    gpus: tuple[str, ...] = ()
    niceness: int = 0
    hardware: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
    pid_namespace: str = ""

    @property
    def node(self) -> str:
        """The node, as outputs name it."""
        return f"{self.hostname} ({self.address})"


@dataclass(frozen=True)
class Progress:
    """What has become of an agent's components since it was last asked.

    Args:
        codes: Exit code by component; None while it runs, a negative number for the signal that ended it.
        output: What each component has written since, by component.
        memory_bytes: The most that the agent and its processes have held at one time (PSS).
    """

    codes: Mapping[str, int | None] = field(default_factory=dict)
    output: Mapping[str, bytes] = field(default_factory=dict)
    memory_bytes: int = 0


@dataclass(frozen=True)
class Failure:
    """An error on a node, in the three parts that errors of this package have.

    Args:
        what: What failed, in one sentence.
        where: Where.
        todo: What to do next.
    """

    what: str
    where: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Args:
        id: The cluster's own name of it.
        hostname: Its name.
        address: Its address within the cluster.
        alive: Whether it answers.
        resources: What it has in all, by name.
    """

    id: str
    hostname: str
    address: str
    alive: bool = True
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The node, as outputs name it."""
        return f"{self.hostname} ({self.address})"
