"""Machines of agents that are watched: who looks where, who is a stranger there, and what a load is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pytest_kvcache.campaign import gpus, other_work
from pytest_kvcache.campaign.gpus import BootGpus, watched
from pytest_kvcache.campaign.other_work import LoadWork
from pytest_kvcache.errors import BootError, KvCacheError
from pytest_kvcache.runs.journal import boot_id
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.serving.nodes.agent import NodeAgent
from pytest_kvcache.serving.nodes.daemons import daemons
from pytest_kvcache.serving.nodes.facts import AgentFacts, Progress
from pytest_kvcache.serving.nodes.following import Followed, NodeHandle
from pytest_kvcache.serving.nodes.watching import WatchedNode, WatchedNodes
from pytest_kvcache.telemetry.gpu.readings import Span
from pytest_kvcache.telemetry.other_work import OtherWork, Worker
from pytest_kvcache.telemetry.processes import Owned
from tests.neighbours import Start
from tests.stubs import nvml
from tests.unit.gpu.test_watch import Starter

FOUND = OtherWork(elapsed_s=10, own_s=3, share=0.62, top=(Worker(9, "rustc", 0.62),))
HERE, NUMBERS = "boot-of-pytest", "pid:[1]"


@dataclass
class Fake:
    """An agent that is asked, and answers."""

    host: str
    boot: str
    namespace: str = NUMBERS
    silent: bool = False
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def own(self) -> Owned:
        """What it says that it owns."""
        return Owned((Leader(int(self.host[-1]), 1, f"/{self.host}.log"),), frozenset({(100, 1)}))

    def ask(self, method: str, *, timeout_s: float, **arguments: Any) -> Any:
        """Answer as an agent does."""
        self.asked.append((method, arguments))
        assert timeout_s > 0
        if self.silent:
            raise BootError("does not answer within 20 s")
        return {"owned": self.own, "other_work": FOUND}.get(method)

    def node(self) -> WatchedNode:
        """Return it as it is watched."""
        facts = AgentFacts(
            self.host, f"10.0.0.{self.host[-1]}", Path("/s"), "1", Path("/py"), boot_id=self.boot,
            pid_namespace=self.namespace,
        )  # fmt: skip
        return WatchedNode(Followed(facts, lambda _: Progress()), self.host, self.ask, Starter())


def watch(*agents: Fake) -> WatchedNodes:
    """Return the agents as they are watched from pytest's machine."""
    return WatchedNodes([agent.node() for agent in agents], HERE, NUMBERS)


@pytest.mark.parametrize(
    ("boots", "watchers"),
    [
        (["a", "b"], {"kv-0 (10.0.0.0)": 0, "kv-1 (10.0.0.1)": 1}),
        (["a", "a"], {"kv-0 (10.0.0.0), kv-1 (10.0.0.1)": 0}),
        ([HERE, "b"], {"kv-1 (10.0.0.1)": 1}),
        ([HERE, HERE], {}),
        (["", ""], {"kv-0 (10.0.0.0)": 0, "kv-1 (10.0.0.1)": 1}),
    ],
    ids=["two machines", "one machine", "one is pytest's", "both are pytest's", "not told"],
)
def test_each_machine_is_looked_at_once(boots: list[str], watchers: dict[str, int]) -> None:
    """One agent looks at each machine that is not pytest's, and knows what other agents own there."""
    agents = [Fake(f"kv-{number}", boot) for number, boot in enumerate(boots)]
    nodes = watch(*agents)
    nodes.watch_other_work()
    assert nodes.other_work() == dict.fromkeys(watchers, FOUND)
    for number, agent in enumerate(agents):
        begun = [given["beside"] for method, given in agent.asked if method == "watch_other_work"]
        others = [each.own.leaders[0] for each in agents if each is not agent and each.boot == agent.boot != ""]
        assert begun == (
            [Owned(tuple(others), frozenset({(100, 1)} if others else ()))] * (number in watchers.values())
        )
    own = nodes.owned_here()
    assert own.leaders == tuple(each.own.leaders[0] for each in agents if each.boot == HERE)


@pytest.mark.parametrize("agent", [Fake("kv-0", HERE, "pid:[2]"), Fake("kv-0", HERE, silent=True)])
def test_what_cannot_be_told_here_is_not_judged(agent: Fake) -> None:
    """Where an agent on this machine has numbers of its own, or is silent, its components cannot be seen."""
    (leader,) = watch(agent).owned_here().leaders
    assert leader.start_ticks == 0
    with other_work.watched(tuple, watch(agent)) as work:
        time.sleep(0.01)
    assert work.here.unseen == ("kv-0",)


def test_a_node_that_does_not_answer_is_a_note() -> None:
    """Its work is not known, and neither is what a request costs in all; nothing is suspect for it."""
    with other_work.watched(tuple, watch(Fake("kv-0", "a", silent=True), Fake("kv-1", "b"))) as work:
        time.sleep(0.01)
    lost, found = work.nodes.values()
    assert lost.notes == ("other work cannot be told: does not answer within 20 s",)
    assert (lost.suspicions(0.1), found, work.own_s) == ([], FOUND, 0.0)


def test_a_lost_node_is_not_asked() -> None:
    """Asking a node that is lost already would cost the limit of an answer each time."""
    agent = Fake("kv-0", "a")
    node = agent.node()
    node.followed.lost = "its agent was killed"
    with pytest.raises(KvCacheError, match="the node was lost: its agent was killed"):
        node.own_pids()
    assert agent.asked == []


def test_what_a_load_says_of_nodes() -> None:
    """A node's strangers make the load suspect with its name, and stand by it in the facts."""
    work = LoadWork(OtherWork(own_s=1), {"kv-1 (10.0.0.1)": FOUND, "kv-2 (10.0.0.2)": OtherWork(own_s=2)})
    assert work.suspicions(0.1) == [
        "node kv-1 (10.0.0.1): other processes took 62 % of the processors: 9 rustc; run it again on a quiet machine"
    ]
    facts = work.facts()["other_work"]
    assert (facts["own_s"], facts["nodes"]["kv-1 (10.0.0.1)"]["top"][0]["name"]) == (1, "rustc")
    assert work.own_s == 6
    assert "nodes" not in LoadWork().facts()["other_work"]


@pytest.fixture
def agent(kvcache_home: Path) -> Iterator[NodeAgent]:
    """An agent on this machine."""
    made = NodeAgent("127.0.0.1")
    yield made
    made.close()


@dataclass
class There:
    """Starts components by an agent, as the launcher does."""

    agent: NodeAgent
    followed: Followed

    def start(self, component: Component, logs: Path) -> Handle:
        """Start, and follow."""
        log = logs / f"{component.name}.log"
        logs.mkdir(exist_ok=True)
        log.touch()
        self.agent.start(component)
        self.followed.add(component.name, log)
        return NodeHandle(component, log, self.followed)

    def stop(self, handles: list[Handle]) -> None:
        """Stop, and bring the rest."""
        self.agent.stop([each.component.name for each in handles])
        self.followed.update()


def node_of(agent: NodeAgent, *, machine: str = "another") -> WatchedNode:
    """Return an agent of this machine as one of another."""

    def ask(method: str, *, timeout_s: float, **arguments: Any) -> Any:
        assert timeout_s > 0
        return getattr(agent, method)(**arguments)

    followed = Followed(replace(agent.facts(), boot_id=machine), agent.progress)
    return WatchedNode(followed, "kv-1", ask, There(agent, followed))


def test_samples_of_a_node_come_while_it_runs(
    agent: NodeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler on a node (NVML replayed) is read while it samples, on this machine's clock, and ends with the boot."""
    monkeypatch.setattr(gpus, "SAMPLER", (sys.executable, str(Path(nvml.__file__)), "hot"))
    node, told, start_s = node_of(agent), list[BootGpus](), time.monotonic()
    assert abs(node.clock_ahead_s()) < 0.1
    with watched((), Starter(), tmp_path, label="x", tell=told.append, nodes=[(node, ("0",))]) as watch:
        while not watch.whole().gpus or not watch.whole().gpus[0].samples:
            time.sleep(0.1)
        found = watch.during(Span(50, start_s, time.monotonic()))
    assert f"GPU 0 NVIDIA H100 80GB HBM3 of node {agent.facts().node} throttled" in found.suspicions[0]
    table = pd.read_parquet(tmp_path / "gpus.parquet")
    assert table["since_start_s"].dropna().between(0, 60).all()
    assert agent.progress({}).codes["gpus-kv-1"] is not None
    assert not list((tmp_path / "logs").iterdir())


@pytest.mark.parametrize("machine", ["another", boot_id()], ids=["another machine", "this machine"])
def test_servers_of_a_node_are_no_strangers(agent: NodeAgent, tmp_path: Path, spinning: Start, machine: str) -> None:
    """A busy component of an agent is the run's to whoever looks, the agent or pytest; another program is not."""
    spin = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    agent.start(Component("vllm-0", (sys.executable, "-S", "-c", spin), "servers"))
    stranger = spinning()
    nodes = WatchedNodes([node_of(agent, machine=machine)])
    with other_work.watched(tuple, nodes) as work:
        time.sleep(1)
    found = work.here if machine == boot_id() else work.nodes[agent.facts().node]
    (server,) = agent.own_pids()
    assert found.own_s > 0.1
    assert stranger.pid in {each.pid for each in found.top}
    assert server not in {each.pid for each in found.top}


def test_daemons_of_a_cluster_are_told_from_its_workers(tmp_path: Path) -> None:
    """Ray's own programs are known by their names, scripts and titles; a worker that names a script is none of them."""
    code = "import time; time.sleep(60)"
    (tmp_path / "ray" / "dashboard").mkdir(parents=True)
    script = tmp_path / "ray" / "dashboard" / "agent.py"
    script.write_text(code)
    (tmp_path / "raylet").symlink_to("/bin/sleep")
    commands = [
        (True, [sys.executable, "-u", str(script)]),
        (True, [str(tmp_path / "raylet"), "60"]),
        (True, ["ray::DashboardAgent", "-S", "-c", code]),
        (False, ["ray::train", "-S", "-c", code]),
        (False, [sys.executable, "-S", "-c", code, str(script)]),
    ]
    started = [subprocess.Popen(argv, executable=None if os.sep in argv[0] else sys.executable) for _, argv in commands]
    try:
        deadline = time.monotonic() + 10
        expected = {each.pid for each, (own, _) in zip(started, commands, strict=True) if own}
        while (found := {pid for pid, _ in daemons()} & {each.pid for each in started}) != expected:
            assert time.monotonic() < deadline, (found, expected)
    finally:
        for each in started:
            each.kill()
            each.wait()


def test_no_agent_answers_of_a_watch_that_was_not_begun(agent: NodeAgent) -> None:
    """A load whose watch a node did not begin gets nothing of it; a second watch replaces the first."""
    assert agent.other_work() == OtherWork()
    agent.watch_other_work(Owned())
    agent.watch_other_work(Owned())
    assert agent.other_work().looks >= 2
    assert agent.other_work() == OtherWork()
