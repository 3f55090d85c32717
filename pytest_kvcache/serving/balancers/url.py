"""A balancer that runs already: the run starts none, and sends to its URL."""

from __future__ import annotations

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.serving.balancers.base import BalancerPlan, Front, Plain


class ExistingUrl(Plain):
    """Somebody else's balancer in front of the pair's servers, which have the ports that it knows."""

    def plan(self, settings: Balancer, front: Front) -> BalancerPlan:  # noqa: ARG002 - it knows the servers itself
        """Return its URL."""
        return BalancerPlan((f"{settings.url.rstrip('/')}/v1",))
