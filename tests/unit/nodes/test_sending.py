"""Load nodes of a boot on a cluster: where they are, how they and the balancer are reached, and what they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.campaign import load_process
from pytest_kvcache.campaign.settings import resolve
from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.config.options import Options
from pytest_kvcache.errors import BootError, ConfigError
from pytest_kvcache.load.nodes.link import split_address
from pytest_kvcache.load.nodes.messages import KEY_ENV, identity
from pytest_kvcache.load.plan import API_KEY
from pytest_kvcache.redaction import redacted
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.launchers import ray as launching
from pytest_kvcache.serving.nodes.facts import AgentFacts, Node, own_version
from pytest_kvcache.serving.pair import ServingPair, boot
from pytest_kvcache.serving.plan import ServingPlan
from tests.unit.nodes.test_launcher import MP, VERSIONS, Placed, launcher, planned

OWN_KEY = "the key of load nodes that somebody else has started"


class Three(Placed):
    """A cluster of three nodes; the third has no mount, and pytest runs there."""

    addresses = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    versions = [VERSIONS] * 3
    code = "as here"

    def here(self) -> Node:
        """Return the node on which pytest runs."""
        return self.nodes()[-1]

    def nodes(self) -> list[Node]:
        """Return the three nodes."""
        return [
            Node(f"id{i}", f"kv-{i}", address, True, {"CPU": 4.0, **({} if i == 3 else {"pnfs": 1.0})})
            for i, address in enumerate(self.addresses, 1)
        ]

    def start_agents(self, bundles: Any) -> list[AgentFacts]:
        """Place an agent on each node."""
        return [
            AgentFacts(f"kv-{i}", address, Path(f"/tmp/kvc-{i}"), own_version(), Path(f"/py{i}"))
            for i, (address, _) in enumerate(zip(self.addresses, bundles, strict=False), 1)
        ]

    def ask(self, index: int, method: str, /, **arguments: Any) -> Any:
        """Answer as an agent does."""
        if method == "call" and arguments["function"].endswith(":identity"):
            return {**identity(), **({} if self.code == "as here" else {"code": self.code})}
        return super().ask(index, method, **arguments)


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "Cluster", Three)
    monkeypatch.setattr(Placed, "asked", {})


def plan_of(run: RunSession, kind: str = "none", *, balancer: dict[str, Any] | None = None, **ray: Any) -> ServingPlan:
    """Return the plan of a pair with a load node on a third node."""
    profile = MP.model_copy(update={"balancer": Balancer.model_validate({"kind": kind, **(balancer or {})})})
    return planned(launcher(run, profile, **{"resources": {"pnfs": 1}, "load_nodes": 1, **ray}))


@pytest.fixture(params=["10.0.0.3", "fd00::3"])
def third(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the third node, which this machine has on loopback for the length of a test."""
    monkeypatch.setattr(Three, "addresses", ("10.0.0.1", "10.0.0.2", request.param))
    monkeypatch.setattr("pytest_kvcache.runs.ports._is_free", lambda *_: True)
    return str(request.param)


def test_an_agent_of_the_load_on_a_node_of_its_own(run: RunSession, third: str) -> None:
    """It asks for no mount and no GPU, listens at its node's address, and is ready once it says so."""
    plan = plan_of(run, cpus_per_load_node=2)
    assert Placed.asked["bundles"] == [{"CPU": 1, "pnfs": 1}, {"CPU": 1, "pnfs": 1}, {"CPU": 2}]
    (address,) = plan.load_nodes
    assert split_address(address)[0] == third
    (agent,) = [each for each in plan.components if each.name == "load-node-0"]
    assert agent.place == "kv-3"
    assert agent.argv == ("/py3", "-m", "pytest_kvcache.cli", "load-node", "--listen", address)
    assert agent.ready_line == "load node listens on"
    assert {each.place for each in plan.components if each.name.startswith(("vllm", "lmcache"))} == {"kv-1", "kv-2"}


def test_keys_of_a_boot_are_in_no_command_line(run: RunSession) -> None:
    """A load node gets a key of this boot for its coordinator, another one for the servers; no output shows them."""
    plan, other = plan_of(run), plan_of(run)
    key = plan.load_node_key
    assert len({key, plan.api_key, other.load_node_key}) == 3
    (agent,) = [each for each in plan.components if each.name == "load-node-0"]
    assert agent.secret_env == {KEY_ENV: key, API_KEY: plan.api_key}
    assert key not in json.dumps([(each.argv, dict(each.env)) for each in plan.components]) + repr(plan)
    assert redacted(f"echo {key}") == "echo ***"
    assert not any(key in each.secret_env.values() for each in plan.components if each is not agent)


def test_the_load_process_is_told_of_them(run: RunSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It gets their addresses and the boot's key, whatever key of other load nodes is in the environment."""
    monkeypatch.setenv(KEY_ENV, OWN_KEY)
    for plan, nodes in ((plan_of(run), True), (plan_of(run, load_nodes=0), False)):
        pair = ServingPair(plan, (), 0.0)
        common = {"context_tokens": 50, "first_user": 0, "folder": tmp_path, "salt": ""}
        load = load_process.load_plan(pair, MP.workload, nodes=(), **common)  # type: ignore[arg-type]
        assert load.nodes == plan.load_nodes
        component = load_process.load_component(pair, load, tmp_path / "plan.json")
        assert component.secret_env.get(KEY_ENV) == (plan.load_node_key if nodes else None)
        assert component.secret_env[API_KEY] == plan.api_key
        assert plan.load_node_key == "" or plan.load_node_key not in load.model_dump_json()


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_the_balancer_is_where_load_nodes_reach_it(run: RunSession, third: str, kind: str) -> None:
    """It listens at the cluster's address of pytest's machine, for prompts alone; its counters stay on loopback."""
    plan = plan_of(run, kind)
    host = f"[{third}]" if ":" in third else third
    assert plan.base_url.startswith(f"http://{host}:")
    (text,) = next(each for each in plan.components if each.name == kind).files.values()
    binds = [line.split()[1] for line in text.splitlines() if line.split()[:1] in (["bind"], ["listen"])]
    assert [bind.rstrip(";").rpartition(":")[0] for bind in binds] == [host, "127.0.0.1"]
    assert plan.balancer_metrics_url.startswith("http://127.0.0.1:")
    assert "chat/completions" in text


@pytest.mark.parametrize(("kind", "ray"), [("haproxy", {"load_nodes": 0}), ("vllm-router", {"address": ""})])
def test_what_nobody_else_sends_to_stays_on_loopback(run: RunSession, kind: str, ray: dict[str, Any]) -> None:
    """Without load nodes, and in a cluster of this machine alone, the balancer listens on loopback."""
    resources: dict[str, Any] = {"resources": {}} if "address" in ray else {}
    assert plan_of(run, kind, **ray, **resources).base_url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("balancer", "why"),
    [
        ({"kind": "vllm-router"}, "its control has no key"),
        ({"kind": "nginx", "template": "/own.j2"}, "what a template of your own would open"),
        ({"kind": "haproxy", "template": "/own.j2"}, "what a template of your own would open"),
        ({"kind": "url", "url": "http://127.0.0.1:8080"}, "on loopback"),
        ({"kind": "url", "url": "http://localhost:8080"}, "on loopback"),
        ({"kind": "url", "url": "http://[::1]:8080"}, "on loopback"),
        ({"kind": "url", "url": "http://lb.example:8080"}, ""),
        ({"kind": "none"}, ""),
        ({"kind": "nginx"}, ""),
    ],
)
def test_balancers_that_load_nodes_cannot_use_are_refused(run: RunSession, balancer: dict[str, Any], why: str) -> None:
    """The refusal comes before anything is asked of the cluster, with the key to change and what to take."""
    profile = MP.model_copy(update={"balancer": Balancer.model_validate(balancer)})
    if not why:
        launcher(run, profile, load_nodes=1)
        return
    with pytest.raises(ConfigError) as raised:
        launcher(run, profile, load_nodes=1)
    assert why in raised.value.what
    assert raised.value.where == "profiles.cpu-tiny-mp.ray.load_nodes"
    assert "haproxy, nginx or none" in raised.value.todo
    launcher(run, profile)


def test_load_nodes_cannot_be_spread_over_one_machine(run: RunSession) -> None:
    """A cluster that is made for the boot has one node, which may have all of them packed and no two spread."""
    one = MP.model_copy(update={"servers": 1, "balancer": Balancer(kind="none", policy="turns")})
    with pytest.raises(ConfigError, match="1 servers and 1 load nodes cannot be spread"):
        launcher(run, one, address="", strategy="spread", load_nodes=1)


def test_a_node_with_other_code_is_named_before_anything_boots(
    run: RunSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one run come from one code: a load node that has another one ends the boot, with its name."""
    monkeypatch.setattr(Three, "code", "another")
    with pytest.raises(BootError, match=r"node kv-3 \(10\.0\.0\.3\): the node has other code of pytest-kvcache"):
        plan_of(run)


def test_load_nodes_of_two_kinds_are_refused(tmp_path: Path) -> None:
    """A session sends from load nodes that the launcher starts, or from those that it names, and not from both."""
    path = tmp_path / "kvcache.toml"
    path.write_text('[profiles.cpu-tiny.ray]\naddress = "auto"\nload_nodes = 2\n')

    def options(launcher: str | None, *nodes: str) -> Options:
        folders: dict[str, Any] = {"rootdir": tmp_path, "runs": tmp_path, "baselines": tmp_path}
        return Options(
            **folders, tiers=("gpu",), profile="cpu-tiny", engine=None, config=path, update="none", boots=None,
            strict=False, against=None, image_mounts=(), launcher=launcher, load_nodes=nodes,
        )  # fmt: skip

    with pytest.raises(ConfigError, match="the launcher ray starts 2 of its own") as raised:
        resolve(options("ray", "10.0.0.7:7777"))
    assert raised.value.where == "--kv-load-node"
    for allowed in (options("ray"), options(None, "10.0.0.7:7777")):
        resolve(allowed)


class _Started:
    """A component whose log says something after a while."""

    def __init__(self, component: Any, log: Path, says: str) -> None:
        self.component, self.log, self._says, self._looks = component, log, says, 0

    def exit_code(self) -> int | None:
        """Run on, and write a line at the second look."""
        self._looks += 1
        self.log.write_text(self._says if self._looks > 1 else "starting\n")
        return None


@pytest.mark.parametrize(
    ("says", "ready"),
    [("load node listens on 10.0.0.3:1\n", True), ("cannot say: load node listens on\n", False), ("", False)],
)
def test_what_speaks_no_http_is_ready_once_it_says_so(run: RunSession, tmp_path: Path, says: str, ready: bool) -> None:
    """A boot waits for a line of the component's log that begins as its plan says."""
    plan = plan_of(run)
    components = tuple(each for each in plan.components if each.name == "load-node-0")

    class Starter:
        def start(self, component: Any, logs: Path) -> _Started:
            return _Started(component, logs / "log", says)

        def stop(self, _: object) -> None: ...

    only = ServingPlan(plan.tier, components, "", "", {}, {})
    if ready:
        assert boot(only, Starter(), tmp_path, timeout_s=20).handles
    else:
        with pytest.raises(BootError, match="load-node-0 was not ready in time"):
            boot(only, Starter(), tmp_path, timeout_s=0.3)
