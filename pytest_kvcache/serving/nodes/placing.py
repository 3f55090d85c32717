"""Has a cluster place agents, and says of each node what it lacks where it cannot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.errors import BootError
from pytest_kvcache.serving.nodes.cluster import Cluster
from pytest_kvcache.serving.nodes.facts import AgentFacts, Node
from pytest_kvcache.serving.places import LOOPBACK

NAMESPACE = "pytest-kvcache"
#: The least that Ray takes: agents' answers are small (bytes).
_OBJECT_STORE = 80 << 20
_STRATEGIES = {"spread": "STRICT_SPREAD", "pack": "STRICT_PACK"}


def connect(cluster: Cluster, settings: RaySettings, scratch: Path, *, servers: int) -> None:
    """Connect to the cluster of the settings, or make one of this machine alone, which listens on loopback.

    Args:
        cluster: Not connected yet.
        settings: Names the cluster.
        scratch: Folder for the files of a cluster that is made.
        servers: Number of servers that a cluster that is made has room for.

    Raises:
        BootError: The cluster does not answer.
    """
    if settings.address:
        cluster.connect(settings.address, namespace=NAMESPACE)
        return
    cluster.connect(
        "local",
        namespace=NAMESPACE,
        include_dashboard=False,
        num_cpus=max(
            1, math.ceil(servers * settings.cpus_per_server + settings.load_nodes * settings.cpus_per_load_node)
        ),
        resources={name: amount * servers for name, amount in settings.resources.items()},
        object_store_memory=_OBJECT_STORE,
        _node_ip_address=LOOPBACK,
        _temp_dir=str(scratch / "r"),
    )


def place(
    cluster: Cluster, settings: RaySettings, bundle: Mapping[str, float], *, servers: int
) -> list[AgentFacts]:  # fmt: skip
    """Have an agent placed for each server, then one for each load node; they are returned in this order.

    Raises:
        BootError: The cluster has no room, or an agent did not start; nodes are named.
    """
    nodes = cluster.nodes()
    count, load = settings.load_nodes, settings.load_bundle
    if lacks := room(nodes, bundle, servers=servers, strategy=settings.placed, load=load, load_nodes=count):
        raise BootError(lacks, where="launcher ray", todo="`ray status` shows what the cluster has")
    bundles = [dict(bundle)] * servers + [load] * count
    more = f" and {count} times {text(load)}" if count else ""
    if not cluster.place(bundles, _STRATEGIES[settings.placed], settings.wait_s):
        raise BootError(
            f"the cluster has no room for {servers} times {text(bundle)}{more} within {settings.wait_s:g} s: "
            "others use it",
            where="launcher ray",
            todo="`ray status` shows who; raise ray.wait_s to wait longer",
        )
    return cluster.start_agents(bundles)


def room(
    nodes: Sequence[Node],
    bundle: Mapping[str, float],
    *,
    servers: int,
    strategy: str,
    load: Mapping[str, float] = MappingProxyType({}),
    load_nodes: int = 0,
) -> str:
    """Return why no placement is possible, however idle the cluster; "" where one is.

    Args:
        nodes: All nodes.
        bundle: What a server needs, by Ray's names.
        servers: Number of servers.
        strategy: `spread` or `pack`.
        load: What a load node needs.
        load_nodes: Number of load nodes.
    """
    alive = [node for node in nodes if node.alive]
    kinds = {**bundle, **(load if load_nodes else {})}
    if strategy == "pack":
        wanted = {name: bundle.get(name, 0.0) * servers + load.get(name, 0.0) * load_nodes for name in kinds}
        return _needs(alive, wanted, 1, more=f" ({load_nodes} to send the load)" if load_nodes else "")
    if not load_nodes:
        return _needs(alive, bundle, servers)
    serving, sending = (_having(alive, each) for each in (bundle, load))
    either = [node for node in alive if node in serving or node in sending]
    # Hall's theorem for two kinds: there are enough nodes for each of them, and for both together.
    if len(serving) >= servers and len(sending) >= load_nodes and len(either) >= servers + load_nodes:
        return ""
    most = {name: max(bundle.get(name, 0.0), load.get(name, 0.0)) for name in kinds}
    return (
        f"needs {_nodes(servers)} with {text(bundle)} for servers, and {load_nodes} more with {text(load)} to send the "
        f"load (ray.load_nodes); {len(serving)} of {len(alive)} have the first, {len(sending)} the second: "
        f"{_each(alive, most, 'has both')}"
    )


def _needs(alive: Sequence[Node], wanted: Mapping[str, float], count: int, *, more: str = "") -> str:
    """Return that too few nodes have what is wanted, "" where enough have it."""
    having = _having(alive, wanted)
    if len(having) >= count:
        return ""
    return (
        f"needs {_nodes(count)} with {text(wanted)}{more}, and {len(having)} of {len(alive)} have it: "
        f"{_each(alive, wanted, 'has it')}"
    )


def _having(alive: Sequence[Node], wanted: Mapping[str, float]) -> list[Node]:
    return [node for node in alive if not _lacking(node, wanted)]


def _each(alive: Sequence[Node], wanted: Mapping[str, float], whole: str) -> str:
    return "; ".join(f"{node.name} {_lacking(node, wanted) or whole}" for node in alive) or "no node lives"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def names(agents: Sequence[AgentFacts]) -> list[str]:
    """Return a name for the place of each agent: the node's, with a number where several are on one node."""
    count = Counter(facts.hostname for facts in agents)
    seen: Counter[str] = Counter()
    found = []
    for facts in agents:
        seen[facts.hostname] += 1
        found.append(facts.hostname if count[facts.hostname] == 1 else f"{facts.hostname}#{seen[facts.hostname]}")
    return found


def text(bundle: Mapping[str, float]) -> str:
    """Return resources for people."""
    return ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())


def _lacking(node: Node, wanted: Mapping[str, float]) -> str:
    lacks = {name: node.resources.get(name, 0.0) for name, n in wanted.items() if node.resources.get(name, 0.0) < n}
    return f"has {text(lacks)}" if lacks else ""
