"""All kinds of balancers by name, and the plan of the one that a profile asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_kvcache.config.balancer import Balancer, Kind
from pytest_kvcache.serving.balancers.base import BalancerKind, BalancerPlan, Front
from pytest_kvcache.serving.balancers.haproxy import HaProxy
from pytest_kvcache.serving.balancers.nginx import Nginx
from pytest_kvcache.serving.balancers.none import NoBalancer
from pytest_kvcache.serving.balancers.url import ExistingUrl
from pytest_kvcache.serving.balancers.vllm_router import VllmRouter

KINDS: Mapping[Kind, BalancerKind] = {
    "vllm-router": VllmRouter(),
    "haproxy": HaProxy(),
    "nginx": Nginx(),
    "url": ExistingUrl(),
    "none": NoBalancer(),
}


def plan(settings: Balancer, front: Front) -> BalancerPlan:
    """Return how requests reach the servers.

    Args:
        settings: The profile's balancer.
        front: Its servers, and what it may use.

    Raises:
        ConfigError: A template cannot be read or filled in.
    """
    return KINDS[settings.kind].plan(settings, front)


def server_args(settings: Balancer, scratch: Path, index: int) -> tuple[str, ...]:
    """Return what the `index`-th vLLM server needs so that the balancer can do its work.

    Args:
        settings: The profile's balancer.
        scratch: Folder for sockets of this machine.
        index: Number of the server in the pair, from 0.
    """
    return KINDS[settings.kind].server_args(settings, scratch, index)
