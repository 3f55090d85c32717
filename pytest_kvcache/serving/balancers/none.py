"""No balancer: the client itself takes turns over the servers."""

from __future__ import annotations

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.serving.balancers.base import BalancerPlan, Front, Plain


class NoBalancer(Plain):
    """The servers themselves, so that no time of a balancer is in any figure."""

    def plan(self, settings: Balancer, front: Front) -> BalancerPlan:  # noqa: ARG002 - it has no setting
        """Return the URL of every server."""
        return BalancerPlan(tuple(f"{url}/v1" for url in front.servers.values()))
