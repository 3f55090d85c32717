"""What the launcher `ray` asks of a cluster, and the pair that it plans there; a stand-in places the agents."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from pytest_kvcache.campaign import gpus
from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.errors import BootError, ConfigError
from pytest_kvcache.redaction import redacted
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.serving.launchers import ray as launching
from pytest_kvcache.serving.launchers.base import Launch
from pytest_kvcache.serving.launchers.on_nodes import nodes_of
from pytest_kvcache.serving.launchers.process import ProcessLauncher
from pytest_kvcache.serving.launchers.ray import RayLauncher
from pytest_kvcache.serving.nodes.facts import AgentFacts, Node, Progress, own_version
from pytest_kvcache.serving.nodes.guard import KEY
from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.s3 import S3Tier

VERSIONS = {"python": "3.11.0", "vllm": "0.32.0", "lmcache": "0.5.6", "vllm-router": "0.1.17"}
CPU_RAM = TierPlan("cpu", Offload())
QWEN, MP = (catalogue.load(None).profile(name) for name in ("qwen3-8b", "cpu-tiny-mp"))


class Placed:
    """A cluster of two nodes with eight GPUs each, of which the first four are somebody else's."""

    asked: ClassVar[dict[str, Any]] = {}
    versions: ClassVar[list[Mapping[str, str]]] = [VERSIONS, VERSIONS]

    def __init__(self, *_: object, own_token: bool) -> None:
        self.asked["own_token"] = own_token
        self._port = 18000

    def connect(self, address: str, **options: Any) -> None:
        """Note what is connected to."""
        self.asked.update({"address": address, "options": options})

    def sweep(self) -> dict[str, list[str]]:
        """Have nothing to remove."""
        return {}

    def nodes(self) -> list[Node]:
        """Return the two nodes."""
        resources = {"CPU": 64.0, "GPU": 8.0, "pnfs": 1.0}
        return [Node(f"id{i}", f"gpu-{i}", f"10.0.0.{i}", True, resources) for i in (1, 2)]

    def here(self) -> Node:
        """Return the node on which pytest runs, which has no servers."""
        return Node("id9", "head", "127.0.0.9")

    def place(self, bundles: Sequence[Mapping[str, float]], strategy: str, wait_s: float) -> bool:
        """Note what is to be placed how."""
        self.asked.update({"bundles": bundles, "strategy": strategy, "wait_s": wait_s})
        return True

    def start_agents(self, bundles: Sequence[Mapping[str, float]]) -> list[AgentFacts]:
        """Place an agent on each node, with the GPUs that the bundle asks for."""
        gpus = [tuple(map(str, range(4, 4 + int(bundle.get("GPU", 0))))) for bundle in bundles]
        return [
            AgentFacts(f"gpu-{i}", f"10.0.0.{i}", Path(f"/tmp/kvc-{i}"), own_version(), Path("/py"), own)
            for i, own in enumerate(gpus, 1)
        ]

    def ask(self, index: int, method: str, /, **_: Any) -> Any:
        """Answer as an agent does."""
        if method == "ports":
            self._port += 1
            return (self._port,)
        return {"versions": self.versions[index], "model": "Qwen/Qwen3-8B", "missing": [], "progress": Progress()}.get(
            method
        )

    def close(self) -> list[str]:
        """Leave nothing."""
        return []


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "Cluster", Placed)
    monkeypatch.setattr(Placed, "asked", {})


def launcher(run: RunSession, profile: Profile, tier: TierPlan = CPU_RAM, **settings: Any) -> RayLauncher:
    """Return the launcher of a boot on the cluster."""
    given = profile.model_copy(update={"ray": RaySettings(**{"address": "head:6379", **settings})})
    engine = run.scratch / "engine"
    (engine / "bin").mkdir(parents=True, exist_ok=True)
    (engine / "bin" / "vllm-router").touch()
    return RayLauncher(Launch(run, Engine(engine, VERSIONS), given, tier))


def planned(made: RayLauncher) -> ServingPlan:
    """Return the plan of a boot."""
    try:
        made.prepare()
        plan = made.plan()
        assert pickle.dumps(plan.components)  # they go to agents over a pipe
        return plan
    finally:
        made.clear()


def test_servers_on_gpus_of_two_nodes(run: RunSession) -> None:
    """Each server asks for a node with its GPUs, processors and the mount, and serves on the GPUs that it was given."""
    profile = QWEN.model_copy(update={"gpus_per_server": 2})
    plan = planned(launcher(run, profile, resources={"pnfs": 1}, cpus_per_server=8))
    bundle = {"CPU": 8, "GPU": 2, "pnfs": 1}
    assert Placed.asked["bundles"] == [bundle, bundle]
    assert Placed.asked["strategy"] == "STRICT_SPREAD"
    servers = [each for each in plan.components if each.name.startswith("vllm-")]
    assert [each.place for each in servers] == ["gpu-1", "gpu-2"]
    assert {each.env["CUDA_VISIBLE_DEVICES"] for each in servers} == {"4,5"}
    assert [each.argv[each.argv.index("--host") + 1] for each in servers] == ["10.0.0.1", "10.0.0.2"]
    assert all(each.argv[0].endswith("engine/bin/vllm") for each in servers)
    assert all("--tensor-parallel-size" in each.argv for each in servers)


@pytest.mark.parametrize(
    ("settings", "strategy", "address"),
    [
        ({}, "STRICT_SPREAD", "head:6379"),
        ({"strategy": "pack"}, "STRICT_PACK", "head:6379"),
        ({"address": ""}, "STRICT_PACK", "local"),
    ],
)
def test_how_servers_are_placed(run: RunSession, settings: dict[str, Any], strategy: str, address: str) -> None:
    """Servers are spread over a cluster that stands, and packed when asked; one that is made has a token of its own."""
    planned(launcher(run, MP, **settings))
    assert (Placed.asked["strategy"], Placed.asked["address"]) == (strategy, address)
    assert Placed.asked["own_token"] == (address == "local")
    if address == "local":
        assert Placed.asked["options"]["_node_ip_address"] == "127.0.0.1"
        assert not Placed.asked["options"]["include_dashboard"]


@pytest.mark.parametrize("profile", [QWEN, MP], ids=["in-process", "mp"])
def test_what_listens_beyond_its_machine_asks_for_the_key(run: RunSession, profile: Profile) -> None:
    """Servers on nodes have the guard and the key, which is on no command line; the router stays on loopback."""
    plan = planned(launcher(run, profile))
    assert len(plan.api_key) >= 32
    words = json.dumps([(each.argv, dict(each.env)) for each in plan.components])
    assert plan.api_key not in words
    assert plan.api_key not in repr(plan)
    assert plan.api_key not in redacted(f"echo {plan.api_key}")
    by_name = {each.name: each for each in plan.components}
    for name in ("vllm-0", "vllm-1"):
        server = by_name[name]
        assert server.argv[-2:] == ("--middleware", "kvcache_guard.Guard")
        assert server.secret_env[KEY] == plan.api_key
        (source,) = [text for path, text in server.files.items() if path.name == "kvcache_guard.py"]
        assert "class Guard" in source
        assert server.env["FORWARDED_ALLOW_IPS"] == "127.0.0.1"
    router = by_name["router"]
    assert (router.place, router.argv[router.argv.index("--host") + 1]) == ("", "127.0.0.1")
    assert router.env["NO_PROXY"].endswith("127.0.0.1,localhost,10.0.0.1,10.0.0.2")
    assert plan.base_url.startswith("http://127.0.0.1:")


def test_an_lmcache_inside_vllm_is_read_through_its_node(run: RunSession) -> None:
    """Its sockets are the node's own: a relay beside each vLLM shows each rank's counters to the cluster."""
    plan = planned(launcher(run, QWEN.model_copy(update={"gpus_per_server": 2})))
    inside = {name: url for name, url in plan.metrics_urls.items() if name.startswith("lmcache")}
    assert sorted(inside) == ["lmcache-0", "lmcache-0.1", "lmcache-1", "lmcache-1.1"]
    assert all(url.startswith("http://10.0.0.") and "/lmcache-inside/lmcache-" in url for url in inside.values())
    relays = [each for each in plan.components if each.name.startswith("counters-")]
    assert [each.place for each in relays] == ["gpu-1", "gpu-2"]
    assert all(each.argv[:3] == ("/py", "-m", "pytest_kvcache.serving.nodes.relay") for each in relays)
    assert sum("http+unix://" in word for each in relays for word in each.argv) == 4


def test_a_node_with_another_version_is_named(run: RunSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that differs on one node ends the boot before it begins, with the node and both versions."""
    monkeypatch.setattr(Placed, "versions", [VERSIONS, {**VERSIONS, "lmcache": "0.5.5"}])
    with pytest.raises(
        BootError, match=r"node gpu-2 \(10\.0\.0\.2\): .*: lmcache 0\.5\.5 in place of 0\.5\.6"
    ) as error:
        planned(launcher(run, MP))
    assert "gpu-1" not in str(error.value)


def test_a_router_of_another_version_matters_nowhere_else(run: RunSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The router runs on pytest's machine: nodes need none."""
    there = {name: version for name, version in VERSIONS.items() if name != "vllm-router"}
    monkeypatch.setattr(Placed, "versions", [there, there])
    assert planned(launcher(run, MP)).components


def s3(run: RunSession, profile: Profile) -> TierPlan:
    """Return the plan of the tier s3 without an endpoint, as it is for servers of this machine."""
    tool = Path("/engine/bin/rclone")
    scratch = run.scratch
    context = TierContext(profile, run.id, scratch, scratch, lambda _: tool, run.ports.take, {})
    return S3Tier(name="s3", kind="s3").plan(context)


def option(component: Component, name: str) -> str:
    """Return the value of an option."""
    return component.argv[component.argv.index(name) + 1]


@pytest.mark.parametrize("profile", [QWEN, MP], ids=["in-process", "mp"])
def test_the_runs_own_bucket_is_reached_by_tls(run: RunSession, profile: Profile) -> None:
    """The S3 server listens with TLS on this machine's address alone; each LMCache finds it on its own loopback."""
    plan = planned(launcher(run, profile, s3(run, profile)))
    by_name = {each.name: each for each in plan.components}
    rclone, relays = by_name["s3"], [by_name[f"storage-{index}"] for index in (0, 1)]
    address = option(rclone, "--addr")
    assert address.startswith("127.0.0.9:")
    assert option(rclone, "--metrics-addr").startswith("127.0.0.1:")
    assert rclone.ready_url == f"http://{option(rclone, '--metrics-addr')}/metrics"
    assert Path(option(rclone, "--key")).parent.is_relative_to(run.scratch)
    assert [(each.place, each.stage) for each in relays] == [("gpu-1", "storage"), ("gpu-2", "storage")]
    assert {option(each, "--connect") for each in relays} == {f"tls://{address}"}
    doors = [option(each, "--listen") for each in relays]
    assert all(door.startswith("127.0.0.1:") for door in doors)
    found = [
        json.loads(option(by_name[f"lmcache-{i}"], "--l2-adapter"))["s3_endpoint"]
        if profile is MP
        else yaml.safe_load(next(text for path, text in by_name[f"vllm-{i}"].files.items() if path.suffix == ".yaml"))[
            "remote_url"
        ].removeprefix("s3://")
        for i in (0, 1)
    ]
    assert found == doors
    assert plan.tier.label == "s3 (by TLS relays)"
    assert plan.tier.facts == {"storage": "s3", "endpoint": "rclone on head (127.0.0.9), by TLS relays"}
    assert plan.tier.storage_account is not None
    assert "read on" not in plan.tier.storage_account.name
    shown = repr(plan)
    assert not [secret for secret in plan.tier.secret_env.values() if secret in shown]
    assert "PRIVATE KEY" not in shown


def test_each_boot_is_compared_as_the_same_storage(run: RunSession) -> None:
    """Ports, keys and the certificate differ from boot to boot; what is compared does not."""
    first, second = (planned(launcher(run, MP, s3(run, MP))).tier for _ in range(2))
    assert first.facts == second.facts
    assert first.label == second.label
    assert first.secret_env != second.secret_env


@pytest.mark.parametrize("address", ["head:6379", ""])
def test_events_of_blocks_are_carried_by_tls(run: RunSession, address: str) -> None:
    """With kv_aware vLLM has a socket, the router a port of loopback; what joins them needs the boot's key."""
    profile = MP.model_copy(update={"balancer": Balancer.model_validate({"policy": "kv_aware"})})
    plan = planned(launcher(run, profile, address=address))
    by_name = {each.name: each for each in plan.components}
    router = by_name["router"].argv
    sources = [router[i + 1] for i, word in enumerate(router) if word == "--kv-event-source"]
    for index, source in enumerate(sources):
        there, here = by_name[f"events-{index}"], by_name[f"events-{index}-here"]
        told = json.loads(option(by_name[f"vllm-{index}"], "--kv-events-config"))["endpoint"]
        assert told == f"ipc://{option(there, '--connect')}"
        assert told.startswith(f"ipc:///tmp/kvc-{index + 1}/")
        assert option(there, "--listen").startswith(f"tls://10.0.0.{index + 1}:")
        assert option(there, "--listen") == option(here, "--connect")
        assert source == f"{plan.server_urls[f'vllm-{index}']}=tcp://{option(here, '--listen')}"
        assert option(here, "--listen").startswith("127.0.0.1:")
        assert (there.place, here.place) == (f"gpu-{index + 1}", "")
        assert here.ready_url is not None
        assert here.ready_url.startswith("http://127.0.0.1:")
        keys = {each.secret_env["KVCACHE_RELAY_KEY"] for each in (there, here)}
        assert len(keys) == 1
        assert "PRIVATE KEY" in keys.pop()
    assert len(sources) == 2
    assert "PRIVATE KEY" not in repr(plan)


def test_nothing_is_made_where_nothing_is_carried(run: RunSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot whose servers need no way to this machine needs no openssl, and has no relay."""
    monkeypatch.setenv("PATH", "")
    assert {each.name for each in planned(launcher(run, MP)).components} == {
        *("lmcache-0", "lmcache-1", "vllm-0", "vllm-1", "router")
    }


def test_a_cluster_of_this_machine_reaches_its_loopback(run: RunSession) -> None:
    """In a cluster that is made on loopback any storage of the run is reached as it is."""
    own = s3(run, MP)
    for tier in (own, planned_storage()):
        plan = planned(launcher(run, MP, tier, address=""))
        assert plan.tier.storage == tier.storage
    assert plan.tier.label == "s3 (stand-in)"


def test_what_cannot_be_is_said_before_anything_is_asked(run: RunSession) -> None:
    """Spreading over one machine, and a storage that stays on loopback, are errors of the configuration."""
    with pytest.raises(ConfigError, match="2 servers cannot be spread over a cluster of this machine alone"):
        launcher(run, MP, address="", strategy="spread")
    storage = planned_storage()
    with pytest.raises(ConfigError, match="keeps its storage on this machine's loopback"):
        launcher(run, MP, tier=storage)
    assert Placed.asked == {}


def planned_storage() -> TierPlan:
    """Return the plan of a tier that starts a server of its own."""
    return TierPlan("s3 (stand-in)", Offload(), storage=(Component("s3", ("rclone",), "storage"),))


def test_its_nodes_can_be_watched_and_a_launcher_without_nodes_offers_none(run: RunSession) -> None:
    """What is measured on nodes is asked of a launcher that offers it; others go on without."""
    made = launcher(run, QWEN)
    try:
        made.prepare()
        plan, nodes = made.plan(), nodes_of(made)
        assert nodes is not None
        assert [(node.name, node.place) for node in nodes.each] == [
            (f"gpu-{i} (10.0.0.{i})", f"gpu-{i}") for i in (1, 2)
        ]
        assert {gpus.named(plan.components, node.place) for node in nodes.each} == {("4",)}
    finally:
        made.clear()
    assert nodes_of(ProcessLauncher(Launch(run, Engine(run.scratch, VERSIONS), MP, CPU_RAM))) is None


def test_it_is_chosen_by_name() -> None:
    """`--kv-launcher ray` names it, and this machine's GPUs say nothing of its boots."""
    assert launchers.found("ray", where="--kv-launcher", folder=None) is RayLauncher
    assert launchers.is_elsewhere("ray")
    assert not launchers.is_elsewhere("process")
