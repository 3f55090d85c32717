"""Endpoints of servers that serve nobody beyond their own node: asked there, by the node's agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_kvcache.serving.nodes.cluster import Cluster

_TIMEOUT_S = 125.0


@dataclass(frozen=True)
class NodeControl:
    """Sends requests from the node on which a component runs.

    Args:
        cluster: The connection.
        agents: Number of each component's agent, by the component's name.
        key: API key of the boot.
    """

    cluster: Cluster
    agents: Mapping[str, int]
    key: str = field(repr=False)

    def post(self, component: str, url: str, body: object) -> tuple[int, str]:
        """Send a request to an endpoint of a component; return status and text.

        Raises:
            BootError: The node does not answer.
        """
        name = component.partition(".")[0]
        # An LMCache inside vLLM is no component: it is where its vLLM is.
        index = self.agents[name] if name in self.agents else self.agents[name.replace("lmcache", "vllm", 1)]
        found: tuple[int, str] = self.cluster.ask(index, "post", timeout_s=_TIMEOUT_S, url=url, body=body, key=self.key)
        return found
