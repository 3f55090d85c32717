"""The process that talks to Ray for a boot; pytest itself imports nothing of Ray.

Ray ends the processes of its drivers where the node's raylet dies, puts handlers of its own in place of theirs and
starts threads in them. A test session must outlive all of that. So this process is the driver: it takes requests from
pytest over a pipe, and ends where the pipe ends, however pytest ended. Ray ends the agents, its actors, with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import ray as _ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.serving.nodes import agent
from pytest_kvcache.serving.nodes.facts import AgentFacts, Failure, Node
from pytest_kvcache.serving.places import LOOPBACK

#: Half of Ray's functions have no types.
ray: Any = _ray
#: Limit for an agent to start, and for the sweep of a node: an interpreter and some imports (s).
_START_S = 120.0
_LOST = "the node was lost, or its agent was killed"


class _Agent(agent.NodeAgent):
    """The agent as Ray runs it: on the address that the cluster knows the node by, with errors as data.

    Args:
        address: Another address of the node; "" for that one.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address or ray.util.get_node_ip_address())

    def ask(self, method: str, arguments: Mapping[str, Any]) -> tuple[bool, Any]:
        """Call a method; return whether it succeeded, with its result or its `Failure`."""
        try:
            return True, getattr(self, method)(**arguments)
        except KvCacheError as error:
            return False, Failure(error.what, error.where, error.todo)


class Broker:
    """Answers pytest's requests, each by a method of the same name."""

    def __init__(self) -> None:
        self._group: Any = None
        self._agents: list[Any] = []
        self._address = ""

    def connect(self, address: str, options: Mapping[str, Any]) -> None:
        """Connect to a cluster, or make one on this machine where the address is "local".

        Args:
            address: As `ray.init` takes it.
            options: More arguments of `ray.init`.
        """
        # Ray takes this machine's outward address in place of the loopback that it is given.
        self._address = LOOPBACK if address == "local" else ""
        try:
            ray.init(address=address, configure_logging=False, log_to_driver=False, **options)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise _failed(f"Ray: {_first_line(error)}") from None

    def nodes(self) -> list[Node]:
        """Return the nodes of the cluster."""
        return [
            Node(
                each["NodeID"],
                each["NodeManagerHostname"],
                each["NodeManagerAddress"],
                each["Alive"],
                {name: n for name, n in each["Resources"].items() if not name.startswith(("node:", "object_store"))},
            )
            for each in ray.nodes()
        ]

    def here(self) -> Node:
        """Return the node of this machine."""
        own = ray.get_runtime_context().get_node_id()
        return next(node for node in self.nodes() if node.id == own)

    def sweep(self) -> dict[str, list[str]]:
        """Have every node that lives remove what dead runs left there; return lines by the node's name.

        A node on which that cannot be done, since it has no such package for instance, has a line that says so.
        """
        remote = ray.remote(num_cpus=0, max_retries=0)(agent.sweep)
        asked = {
            node.name: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote()
            for node in self.nodes()
            if node.alive
        }
        found: dict[str, list[str]] = {}
        for name, ref in asked.items():
            try:
                found[name] = self._got(ref, name)
            except KvCacheError as error:
                found[name] = [f"what killed runs left there cannot be looked for: {error.what}"]
        return found

    def place(self, bundles: list[dict[str, float]], strategy: str, wait_s: float) -> bool:
        """Reserve resources for the agents; return whether the cluster had them in time."""
        self._group = placement_group(bundles, strategy=strategy)
        return bool(self._group.wait(wait_s))

    def start_agents(self, bundles: list[dict[str, float]]) -> list[Any]:
        """Start an agent in each bundle; return what each says of its node.

        Agents are in the order of their bundles, those of equal bundles in the order of their nodes.
        """
        remote = ray.remote(_Agent)
        for index, bundle in enumerate(bundles):
            more = {name: n for name, n in bundle.items() if name not in {"CPU", "GPU"}}
            self._agents.append(
                remote.options(
                    num_cpus=bundle.get("CPU", 0),
                    num_gpus=bundle.get("GPU", 0),
                    resources=more,
                    max_restarts=0,
                    max_concurrency=8,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=index
                    ),
                ).remote(self._address)
            )
        facts = [self.ask(index, "facts", {}, _START_S) for index in range(len(self._agents))]
        # Ray places bundles in any order; the same server is on the same node in every boot, where it can be.
        order = sorted(range(len(facts)), key=lambda index: _rank(bundles, facts, index))
        self._agents = [self._agents[index] for index in order]
        return [facts[index] for index in order]

    def ask(self, index: int, method: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        """Call a method of an agent."""
        done, result = self._got(self._agents[index].ask.remote(method, arguments), "", timeout_s)
        if not done:
            raise _failed(result.what, result.where, result.todo)
        return result

    def release(self) -> list[str]:
        """End all agents and give the resources back; return a line for each thing that stays."""
        said: list[str] = []
        asked = [each.ask.remote("close", {}) for each in self._agents]
        for ref in asked:
            try:
                said += self._got(ref, "", 30.0)[1]
            except KvCacheError as error:
                said.append(error.what)
        for each in self._agents:
            ray.kill(each)
        if self._group is not None:
            remove_placement_group(self._group)
        self._agents, self._group = [], None
        return said

    def _got(self, ref: Any, where: str, timeout_s: float = _START_S) -> Any:
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            raise _failed(f"does not answer within {timeout_s:.0f} s", where) from None
        except RayTaskError as error:
            raise _failed(_last_line(error), where) from None
        except RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                raise _failed(f"the agent does not start: {_last_line(error)}", where) from None
            raise _failed(_LOST, where) from None
        except RayError as error:
            raise _failed(_first_line(error), where) from None


def _rank(bundles: Sequence[Mapping[str, float]], facts: Sequence[AgentFacts], index: int) -> tuple[int, str, str, int]:
    """Return by what agents are put in order: whoever has got what another asked for may take its place."""
    return bundles.index(bundles[index]), facts[index].hostname, facts[index].address, index


def _failed(what: str, where: str = "", todo: str = "") -> KvCacheError:
    return KvCacheError(what, where=where, todo=todo)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def serve(pipe: Connection, handler: Callable[[str, Mapping[str, Any]], Any]) -> None:
    """Answer requests until the pipe ends, several at a time."""
    writing = threading.Lock()

    def answer(number: int, method: str, arguments: Mapping[str, Any]) -> None:
        reply: tuple[bool, Any]
        try:
            reply = True, handler(method, arguments)
        except KvCacheError as error:
            reply = False, Failure(error.what, error.where, error.todo)
        except Exception as error:
            reply = False, Failure(f"{type(error).__name__}: {_first_line(error)}", "the process that talks to Ray")
        with writing:
            pipe.send((number, *reply))

    pool = ThreadPoolExecutor(max_workers=16)
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        pool.submit(answer, *request)


def main(descriptor: int) -> None:
    """Serve the pipe at a file descriptor, then leave the cluster."""
    broker = Broker()
    serve(Connection(descriptor), lambda method, arguments: getattr(broker, method)(**arguments))
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    ending.start()
    ending.join(10.0)
    time.sleep(0.1)
    os._exit(0)  # threads that wait for a lost node would keep the process
