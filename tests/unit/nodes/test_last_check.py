"""The last look at a pair, once a load is over: what other machines say now counts, not what was known of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvcache.campaign import load_process
from pytest_kvcache.errors import BootError
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes.facts import AgentFacts, Progress
from pytest_kvcache.serving.nodes.following import Followed, NodeHandle
from pytest_kvcache.serving.nodes.watching import WatchedNode, WatchedNodes
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.serving.plan import ServingPlan
from tests.unit.gpu.test_watch import Starter


@dataclass
class Over:
    """A load that has ended."""

    component: Component
    log: Path

    def exit_code(self) -> int:
        """Return that it has ended well."""
        return 0


def pair(tmp_path: Path, progress: Progress | BootError) -> ServingPair:
    """Return a pair with one component on a node, whose agent was not asked since it started."""

    def ask(_: object) -> Progress:
        if isinstance(progress, BootError):
            raise progress
        return progress

    agent = Followed(AgentFacts("kv-1", "10.0.0.1", Path("/s"), "1", Path("/py")), ask)
    log = tmp_path / "load-node-0.log"
    log.touch()
    agent.add("load-node-0", log)
    component = Component("load-node-0", ("x",), "servers", place="kv-1")
    plan = ServingPlan(TierPlan("cpu"), (component,), "http://127.0.0.1:1/v1", "m", {}, {})
    node = WatchedNode(agent, "kv-1", lambda *_, **__: None, Starter())
    return ServingPair(plan, (NodeHandle(component, log, agent),), 1.0, nodes=WatchedNodes([node]))


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress({"load-node-0": None}), ""),
        (Progress({"load-node-0": -9}), "load-node-0 ended while serving: it was killed"),
        (BootError("does not answer"), r"node kv-1 \(10\.0\.0\.1\) was lost, with load-node-0"),
    ],
)
def test_what_ended_with_the_last_request_is_told(tmp_path: Path, progress: Progress | BootError, said: str) -> None:
    """A component of another machine that died in the load's last second, or its machine, is named."""
    made = pair(tmp_path, progress)
    made.check_alive()  # of a second ago
    over = Over(Component("load", ("x",), "load"), tmp_path / "load.log")
    if not said:
        load_process.wait_for(over, made, print)
        return
    with pytest.raises(BootError, match=said):
        load_process.wait_for(over, made, print)
