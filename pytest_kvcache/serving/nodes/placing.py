"""Has a cluster place agents, and says of each node what it lacks where it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

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
        num_cpus=max(1, round(servers * settings.cpus_per_server + 0.5)),
        resources={name: amount * servers for name, amount in settings.resources.items()},
        object_store_memory=_OBJECT_STORE,
        _node_ip_address=LOOPBACK,
        _temp_dir=str(scratch / "r"),
    )


def place(
    cluster: Cluster, settings: RaySettings, bundle: Mapping[str, float], *, servers: int
) -> list[AgentFacts]:  # fmt: skip
    """Have an agent placed for each server.

    Raises:
        BootError: The cluster has no room, or an agent did not start; nodes are named.
    """
    nodes = cluster.nodes()
    if lacks := room(nodes, bundle, servers=servers, strategy=settings.placed):
        raise BootError(lacks, where="launcher ray", todo="`ray status` shows what the cluster has")
    bundles = [dict(bundle)] * servers
    if not cluster.place(bundles, _STRATEGIES[settings.placed], settings.wait_s):
        raise BootError(
            f"the cluster has no room for {servers} times {text(bundle)} within {settings.wait_s:g} s: others use it",
            where="launcher ray",
            todo="`ray status` shows who; raise ray.wait_s to wait longer",
        )
    return cluster.start_agents(bundles)


def room(nodes: Sequence[Node], bundle: Mapping[str, float], *, servers: int, strategy: str) -> str:
    """Return why no placement is possible, however idle the cluster; "" where one is.

    Args:
        nodes: All nodes.
        bundle: What a server needs, by Ray's names.
        servers: Number of servers.
        strategy: `spread` or `pack`.
    """
    alive = [node for node in nodes if node.alive]
    times = servers if strategy == "pack" else 1
    wanted = {name: amount * times for name, amount in bundle.items()}
    fitting = [node for node in alive if not _lacking(node, wanted)]
    needed = 1 if strategy == "pack" else servers
    if len(fitting) >= needed:
        return ""
    each = "; ".join(f"{node.name} {_lacking(node, wanted) or 'has it'}" for node in alive)
    nodes_ = "1 node" if needed == 1 else f"{needed} nodes"
    return f"needs {nodes_} with {text(wanted)}, and {len(fitting)} of {len(alive)} have it: {each or 'no node lives'}"


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
