"""Boot a pair on the nodes of a Ray cluster: Ray places and watches, an agent on each node starts the processes.

Each vLLM runs on a node of its own (`strategy = "spread"`), or all of them on one (`"pack"`), with its LMCache beside
it. The load balancer runs on this machine; the load is sent from here, or by load nodes. docs/ray.md has the whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from pytest_kvcache.config import environment
from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.errors import BootError, ConfigError, KvCacheError, RunError
from pytest_kvcache.runs.files import write_json
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Launch, remove_tier_folders
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.nodes import checks, placing
from pytest_kvcache.serving.nodes.account import NodesAccount
from pytest_kvcache.serving.nodes.by_tls import Ways
from pytest_kvcache.serving.nodes.cluster import Cluster
from pytest_kvcache.serving.nodes.control import NodeControl
from pytest_kvcache.serving.nodes.facts import AgentFacts, Progress
from pytest_kvcache.serving.nodes.following import SILENCE_S, Followed, Follower, NodeHandle
from pytest_kvcache.serving.nodes.relay import relayed
from pytest_kvcache.serving.nodes.secured import new_key, secured
from pytest_kvcache.serving.nodes.sending import Sender, refuse_balancer, with_load_nodes
from pytest_kvcache.serving.nodes.tools import NodeEngine
from pytest_kvcache.serving.nodes.watching import WatchedNode, WatchedNodes
from pytest_kvcache.serving.places import Place, Placement
from pytest_kvcache.serving.plan import ServingPlan, build_plan
from pytest_kvcache.storage.account import StorageAccount, StorageReading

#: Limit for the components of a node to end: 5 s of politeness, 2 s of force, and the way there and back.
_STOP_S = 30.0
#: What is known of the nodes of a boot, beside its logs.
NODES = "nodes.json"
_READ = "pytest_kvcache.serving.nodes.reading:read"


class RayLauncher:
    """Boots a pair on nodes of a cluster.

    Args:
        launch: The boot.

    Raises:
        ConfigError: The profile or the engine does not fit.
    """

    name = "ray"
    elsewhere = True

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._settings = launch.profile.ray or RaySettings()
        _fits(launch, self._settings)
        self._here = ProcessStarter(launch.run)
        self._cluster: Cluster | None = None
        #: Those of the servers, and those of the load nodes, which come after them by index.
        self._agents: list[AgentFacts] = []
        self._senders: list[AgentFacts] = []
        self._places: dict[str, int] = {}
        self._follower = Follower([])
        self._models: list[str] = []

    def prepare(self) -> None:
        """Have the cluster place an agent for each server and load node, check all nodes, and make the tier's folders.

        Raises:
            BootError: A node is missing, lacks something or is not as it must be; it is named.
            SetupError: Ray is not installed.
        """
        launch = self._launch
        self._cluster = cluster = Cluster(launch.run, launch.run.folder, own_token=not self._settings.address)
        placing.connect(cluster, self._settings, launch.run.scratch, servers=launch.profile.servers)
        for node, lines in cluster.sweep().items():
            for line in lines:
                launch.say(f"node {node}: {line}")
        bundle, servers = self._settings.bundle(launch.profile.gpus_per_server), launch.profile.servers
        agents = placing.place(cluster, self._settings, bundle, servers=servers)
        self._agents, self._senders = agents[:servers], agents[servers:]
        for facts in agents:
            if facts.niceness:
                launch.say(
                    f"node {facts.node}: its part of the run has niceness {facts.niceness}, since Ray gives it to its "
                    "workers: other programs come before them; start the node with RAY_worker_niceness=0"
                )
        self._places = {name: index for index, name in enumerate(placing.names(agents))}
        self._follower = Follower(
            [Followed(facts, partial(_progress, cluster, index)) for index, facts in enumerate(agents)]
        )
        checks.senders(cluster, self._senders, first=servers)
        self._models = checks.engines(cluster, self._agents, launch, self._engine_path)
        checks.folders(cluster, self._agents, launch)
        checks.storage(cluster, self._agents, launch, self._engine_path)

    def plan(self) -> ServingPlan:
        """Return the plan of a pair whose servers listen on the addresses of their nodes, and ask for a key."""
        launch, cluster = self._launch, self._connected
        names = list(self._places)[: len(self._agents)]
        places = tuple(
            Place(
                tools=NodeEngine(self._engine_path, launch.engine.versions),
                model=self._models[index],
                port=partial(_port, cluster, index),
                scratch=self._agents[index].scratch,
                host=self._agents[index].address,
                name=name,
            )
            for index, name in enumerate(names)
        )
        here = Place(
            tools=launch.engine, model=launch.profile.model, port=launch.run.ports.take, scratch=launch.run.scratch
        )
        own = cluster.here()
        outward = replace(here, host=own.address, port=partial(launch.run.ports.take, own.address))
        python = [facts.python for facts in self._agents]
        ways = Ways(here, outward, own.name, places, python)
        # Load nodes of other machines send through the balancer: it is where they reach it.
        balancer = outward if self._senders and self._settings.address else here
        # All of a cluster that is made here is on loopback.
        tier = ways.to_storage(launch.tier) if self._settings.address else launch.tier
        if tier.storage_account is not None and not tier.storage:
            readers = {facts.node: partial(_read, cluster, index) for index, facts in enumerate(self._agents)}
            tier = replace(tier, storage_account=NodesAccount(tier.storage_account, readers))
        gpus = tuple(facts.gpus if launch.profile.gpus_per_server else () for facts in self._agents)
        plan = build_plan(launch.profile, tier, Placement(servers=places, caches=places, balancer=balancer, gpus=gpus))
        scratch = {place.name: place.scratch for place in places}
        key = new_key()
        by_name = {place.name: place for place in places}
        made = secured(plan, key, scratch=scratch, more=environment.credentials(os.environ))
        made = relayed(made, by_name, dict(zip(by_name, python, strict=True)), key)
        made = with_load_nodes(ways.to_balancer(made), self._where_load_is_sent(cluster))
        return replace(made, control=NodeControl(cluster, self._index_of(made), key))

    def start(self, component: Component, logs: Path) -> Handle:
        """Start a component on its node; its output is brought to `logs`/NAME.log while it runs.

        Raises:
            BootError: It could not be started, or its node was lost.
        """
        if component.place not in self._places:
            return self._here.start(component, logs)
        index = self._places[component.place]
        agent = self._follower.agents[index]
        logs.mkdir(parents=True, exist_ok=True)
        log = (logs / f"{component.name}.log").resolve()
        log.touch()
        try:
            self._connected.ask(index, "start", component=component)
        except BootError as error:
            raise BootError(f"did not start: {error.what}", where=f"{component.name} on {agent.facts.node}") from None
        agent.add(component.name, log)
        return NodeHandle(component, log, agent)

    def restart(self, handle: Handle, logs: Path) -> Handle:
        """End one component and start it anew on the same node."""
        self.stop([handle])
        return self.start(handle.component, logs)

    def stop(self, handles: list[Handle]) -> None:
        """End components and all processes that they started, on all nodes side by side."""
        elsewhere: dict[int, list[str]] = {}
        for handle in handles:
            if isinstance(handle, NodeHandle):
                elsewhere.setdefault(self._places[handle.component.place], []).append(handle.component.name)
        with ThreadPoolExecutor(max_workers=max(1, len(elsewhere))) as pool:
            stopping = [pool.submit(self._stop, index, names) for index, names in elsewhere.items()]
            self._here.stop([handle for handle in handles if not isinstance(handle, NodeHandle)])
            for each in stopping:
                each.result()
        if logs := [handle.log.parent for handle in handles if isinstance(handle, NodeHandle)]:
            self._record(logs[0].parent / NODES)

    def describe(self) -> Mapping[str, str]:
        """Return where the servers run, by their nodes."""
        found = {
            "name": self.name,
            "engine": str(self._engine_path),
            "cluster": self._settings.address or "made for the boot",
            "strategy": self._settings.placed,
        }
        for index, facts in enumerate(self._agents):
            found[f"vllm-{index}"] = facts.node
            found[f"vllm-{index}.niceness"] = str(facts.niceness)
            found[f"vllm-{index}.hardware"] = "; ".join(f"{key} {value}" for key, value in facts.hardware.items())
        found |= {f"load-node-{index}": facts.node for index, facts in enumerate(self._senders)}
        return found

    def server_nodes(self) -> WatchedNodes:
        """Return the nodes, for what is measured on them while they serve."""
        cluster, agents = self._connected, self._follower.agents
        return WatchedNodes(
            [WatchedNode(agents[i], place, partial(cluster.ask, i), self) for place, i in self._places.items()]
        )

    def clear(self) -> None:
        """Remove the tier's folders, and leave the cluster: agents, their folders and ports, the placement group."""
        remove_tier_folders(self._launch)
        self._follower.close()
        if self._cluster is None:
            return
        for line in self._cluster.close():
            self._launch.say(f"ray: {line}")
        self._cluster = None

    @property
    def _connected(self) -> Cluster:
        if self._cluster is None:
            raise BootError("is not connected with a cluster", where="launcher ray", todo="call prepare() first")
        return self._cluster

    @property
    def _engine_path(self) -> Path:
        return Path(self._settings.engine or self._launch.engine.where)

    def _where_load_is_sent(self, cluster: Cluster) -> list[Sender]:
        first = len(self._agents)
        names = list(self._places)[first:]
        return [
            Sender(name, facts, partial(_port, cluster, first + index))
            for index, (name, facts) in enumerate(zip(names, self._senders, strict=True))
        ]

    def _index_of(self, plan: ServingPlan) -> dict[str, int]:
        return {each.name: self._places[each.place] for each in plan.components if each.place in self._places}

    def _stop(self, index: int, names: list[str]) -> None:
        agent = self._follower.agents[index]
        if agent.lost:
            return
        try:
            self._connected.ask(index, "stop", timeout_s=_STOP_S, names=names)
        except KvCacheError as error:
            agent.lost = error.what
            self._launch.say(f"node {agent.facts.node}: {', '.join(names)} could not be ended: {error.what}")
            return
        agent.update()

    def _record(self, path: Path) -> None:
        write_json(
            path,
            {
                name: {
                    "node": agent.facts.node,
                    "lost": agent.lost,
                    "peak_memory_bytes": agent.memory_bytes,
                    "hardware": dict(agent.facts.hardware),
                }
                for name, agent in zip(self._places, self._follower.agents, strict=True)
            },
        )


def _progress(cluster: Cluster, index: int, read: Mapping[str, int]) -> Progress:
    found: Progress = cluster.ask(index, "progress", timeout_s=SILENCE_S, read=read)
    return found


def _port(cluster: Cluster, index: int) -> int:
    return int(cluster.ask(index, "ports", count=1)[0])


def _read(cluster: Cluster, index: int, account: StorageAccount) -> StorageReading:
    """Return what a storage says on a node.

    Raises:
        RunError: It cannot be read there, or the node does not answer.
    """
    try:
        found: StorageReading = cluster.ask(index, "call", function=_READ, arguments={"account": account})
    except BootError as error:
        raise RunError(error.what, where=error.where, todo=error.todo) from None
    return found


def _fits(launch: Launch, settings: RaySettings) -> None:
    name = launch.profile.name
    refuse_balancer(launch.profile, settings)
    if isinstance(launch.engine, ImageEngine):
        raise ConfigError(
            f"launcher ray starts programs of a folder, and the engine is an image: {launch.engine.where}",
            where="--kv-launcher ray",
            todo="give --kv-engine the folder of an environment that all nodes have",
        )
    count, senders = launch.profile.servers, settings.load_nodes
    if settings.strategy == "spread" and not settings.address and count + senders > 1:
        more = f" and {senders} load nodes" if senders else ""
        raise ConfigError(
            f"{count} servers{more} cannot be spread over a cluster of this machine alone",
            where=f"profiles.{name}.ray.strategy",
            todo=f"set profiles.{name}.ray.address to a cluster, or leave the strategy out",
        )
    if launch.tier.storage and launch.tier.reached is None and settings.address:
        raise ConfigError(
            f"tier {launch.tier.label} keeps its storage on this machine's loopback, which nodes do not reach",
            where="--kv-launcher ray",
            todo="name a storage that all nodes reach (tiers.NAME.endpoint), or take another launcher",
        )
