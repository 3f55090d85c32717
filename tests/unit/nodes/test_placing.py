"""Which nodes a cluster must have, and what is said of those that it has."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.serving.nodes import placing
from pytest_kvcache.serving.nodes.facts import AgentFacts, Node


def node(name: str, *, alive: bool = True, **resources: float) -> Node:
    """Return a node with these resources."""
    return Node(name, name, f"10.77.0.{name[-1]}", alive, resources)


PNFS = {"CPU": 1.0, "pnfs": 1.0}


def test_a_node_without_the_resource_is_named() -> None:
    """Where too few nodes have what a server needs, each node is listed with what it has of it."""
    nodes = [node("kv-1", CPU=4, pnfs=1), node("kv-2", CPU=4), node("kv-3", CPU=0.5, pnfs=1)]
    said = placing.room(nodes, PNFS, servers=2, strategy="spread")
    assert said == (
        "needs 2 nodes with CPU 1, pnfs 1, and 1 of 3 have it: kv-1 (10.77.0.1) has it; "
        "kv-2 (10.77.0.2) has pnfs 0; kv-3 (10.77.0.3) has CPU 0.5"
    )


def test_packed_servers_need_one_node_for_all() -> None:
    """Packed, one node must have the sum; spread, two nodes the half each."""
    nodes = [node("kv-1", CPU=1, pnfs=1), node("kv-2", CPU=1, pnfs=1)]
    assert placing.room(nodes, PNFS, servers=2, strategy="spread") == ""
    assert placing.room(nodes, PNFS, servers=2, strategy="pack").startswith("needs 1 node with CPU 2, pnfs 2, and 0 of")


def test_dead_nodes_do_not_count() -> None:
    """A node that was lost has nothing to give."""
    nodes = [node("kv-1", CPU=4, pnfs=1), node("kv-2", alive=False, CPU=4, pnfs=1)]
    assert "1 of 1 have it" in placing.room(nodes, PNFS, servers=2, strategy="spread")
    assert placing.room([], PNFS, servers=1, strategy="spread").endswith("no node lives")


@given(
    have=st.lists(st.integers(0, 3), max_size=5),
    servers=st.integers(1, 4),
    strategy=st.sampled_from(["spread", "pack"]),
)
def test_room_is_there_exactly_if_a_placement_is(have: list[int], servers: int, strategy: str) -> None:
    """Nothing is said exactly where an idle cluster could place the servers."""
    nodes = [node(f"n{i}", CPU=float(n)) for i, n in enumerate(have)]
    fits = sum(n >= 1 for n in have) >= servers if strategy == "spread" else any(n >= servers for n in have)
    assert (placing.room(nodes, {"CPU": 1.0}, servers=servers, strategy=strategy) == "") == fits


AMOUNTS = st.fixed_dictionaries({"CPU": st.integers(0, 3), "pnfs": st.integers(0, 1)})


@given(
    have=st.lists(AMOUNTS, max_size=5),
    servers=st.integers(1, 3),
    load_nodes=st.integers(0, 3),
    load_cpus=st.integers(1, 3),
    strategy=st.sampled_from(["spread", "pack"]),
)
def test_load_nodes_take_room_too(
    have: list[dict[str, int]], servers: int, load_nodes: int, load_cpus: int, strategy: str
) -> None:
    """Nothing is said exactly where servers and load nodes find a placement together, tried out one by one."""
    nodes = [node(f"n{i}", CPU=each["CPU"], pnfs=each["pnfs"]) for i, each in enumerate(have)]
    load = {"CPU": float(load_cpus)}
    if strategy == "pack":
        cpus = servers + load_nodes * load_cpus
        fits = any(each["CPU"] >= cpus and each["pnfs"] >= servers for each in have)
    else:
        can_serve = {i for i, each in enumerate(have) if each["CPU"] >= 1 and each["pnfs"]}
        fits = any(
            sum(have[i]["CPU"] >= load_cpus for i in set(range(len(have))) - set(chosen)) >= load_nodes
            for chosen in itertools.combinations(can_serve, servers)
        )
    said = placing.room(nodes, PNFS, servers=servers, strategy=strategy, load=load, load_nodes=load_nodes)
    assert (said == "") == fits


def test_load_nodes_for_which_there_is_no_node_are_told() -> None:
    """Where the load nodes are too many, it says so, and what each node lacks of either kind."""
    nodes = [node("kv-1", CPU=1, pnfs=1), node("kv-2", CPU=1, pnfs=1), node("kv-3", CPU=0.5)]
    said = placing.room(nodes, PNFS, servers=2, strategy="spread", load={"CPU": 1.0}, load_nodes=1)
    assert said == (
        "needs 2 nodes with CPU 1, pnfs 1 for servers, and 1 more with CPU 1 to send the load (ray.load_nodes); 2 of 3 "
        "have the first, 2 the second: kv-1 (10.77.0.1) has both; kv-2 (10.77.0.2) has both; "
        "kv-3 (10.77.0.3) has CPU 0.5, pnfs 0"
    )
    packed = placing.room(nodes, PNFS, servers=1, strategy="pack", load={"CPU": 1.0}, load_nodes=1)
    assert packed.startswith("needs 1 node with CPU 2, pnfs 1 (1 to send the load), and 0 of 3 have it: kv-1")


@given(st.permutations(range(4)), st.booleans())
def test_roles_are_the_same_in_each_boot(placed: list[int], alike: bool) -> None:
    """However Ray places bundles, servers come first, and whoever has the same resources is taken by its name."""
    broker = pytest.importorskip("pytest_kvcache.serving.nodes.broker")
    bundles = [{"CPU": 1.0}] * 4 if alike else [{"CPU": 1.0, "pnfs": 1.0}] * 2 + [{"CPU": 1.0}] * 2
    # Without the mount on all of them, Ray has the servers on the first two nodes.
    on = placed if alike else [*(n for n in placed if n < 2), *(n for n in placed if n >= 2)]
    agents = [facts(f"kv-{n}") for n in on]
    order = sorted(range(4), key=lambda index: broker._rank(bundles, agents, index))
    assert [agents[index].hostname for index in order] == ["kv-0", "kv-1", "kv-2", "kv-3"]


def facts(hostname: str) -> AgentFacts:
    """Return an agent on a node."""
    return AgentFacts(hostname, "10.77.0.1", Path("/s"), "0", Path("/p"))


def test_places_have_names_of_their_own() -> None:
    """A place is called after its node, with a number where several servers are on it."""
    assert placing.names([facts("a"), facts("b"), facts("a")]) == ["a#1", "b", "a#2"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"address": "ray://head:10001"}, "Ray Client"),
        ({"resources": {"GPU": 1}}, "GPU is no custom resource: set gpus_per_server of the profile"),
        ({"resources": {"CPU": 1}}, "CPU is no custom resource: set cpus_per_server"),
        ({"resources": {"pnfs": 1.5}}, "1.5; Ray wants a whole number"),
        ({"resources": {"pnfs": 0}}, "greater than 0"),
        ({"strategy": "STRICT_SPREAD"}, "'spread' or 'pack'"),
        ({"cpus_per_server": 0}, "greater than 0"),
        ({"load_nodes": -1}, "greater than or equal to 0"),
        ({"cpus_per_load_node": 0}, "greater than 0"),
        ({"adress": "auto"}, "Extra inputs"),
    ],
)
def test_what_no_cluster_could_do_is_refused(table: dict[str, object], said: str) -> None:
    """Settings that Ray would refuse in the middle of a boot are refused when the file is read."""
    with pytest.raises(ValidationError, match=said):
        RaySettings.model_validate(table)


@pytest.mark.parametrize(
    ("table", "placed"),
    [({}, "pack"), ({"address": "auto"}, "spread"), ({"address": "auto", "strategy": "pack"}, "pack")],
)
def test_servers_are_spread_where_there_are_nodes(table: dict[str, object], placed: str) -> None:
    """In a cluster that stands servers are spread; one that is made here has one node."""
    assert RaySettings.model_validate(table).placed == placed


def test_the_bundle_of_a_server_on_gpus() -> None:
    """Each server asks for its processors, its GPUs and its custom resources, by Ray's names."""
    settings = RaySettings(address="auto", resources={"pnfs": 1}, cpus_per_server=8)
    assert settings.bundle(2) == {"CPU": 8, "GPU": 2, "pnfs": 1}
    assert settings.bundle(0) == {"CPU": 8, "pnfs": 1}
