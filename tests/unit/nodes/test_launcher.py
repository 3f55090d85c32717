"""What the launcher `ray` asks of a cluster, and the pair that it plans there; a stand-in places the agents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.errors import BootError, ConfigError
from pytest_kvcache.redaction import redacted
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.serving.launchers import ray as launching
from pytest_kvcache.serving.launchers.base import Launch
from pytest_kvcache.serving.launchers.ray import RayLauncher
from pytest_kvcache.serving.nodes.facts import AgentFacts, Node, Progress, own_version
from pytest_kvcache.serving.nodes.guard import KEY
from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.tiers import catalogue

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


@pytest.fixture
def run(kvcache_home: Path, tmp_path: Path) -> Iterator[RunSession]:
    """A run."""
    made = RunSession(kvcache_home, tmp_path / "runs", print)
    yield made
    made.close()


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
        return made.plan()
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


def test_what_cannot_be_is_said_before_anything_is_asked(run: RunSession) -> None:
    """Spreading over one machine, and a storage on loopback, are errors of the configuration."""
    with pytest.raises(ConfigError, match="2 servers cannot be spread over a cluster of this machine alone"):
        launcher(run, MP, address="", strategy="spread")
    storage = planned_storage()
    with pytest.raises(ConfigError, match="keeps its storage on this machine's loopback"):
        launcher(run, MP, tier=storage)
    assert Placed.asked == {}


def planned_storage() -> TierPlan:
    """Return the plan of a tier that starts a server of its own."""
    from pytest_kvcache.serving.component import Component

    return TierPlan("s3 (stand-in)", Offload(), storage=(Component("s3", ("rclone",), "storage"),))


def test_it_is_chosen_by_name() -> None:
    """`--kv-launcher ray` names it, and this machine's GPUs say nothing of its boots."""
    assert launchers.found("ray", where="--kv-launcher", folder=None) is RayLauncher
    assert launchers.is_elsewhere("ray")
    assert not launchers.is_elsewhere("process")
