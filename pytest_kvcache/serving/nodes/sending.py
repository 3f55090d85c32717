"""The load nodes of a boot: agents of `pytest-kvcache load-node` beside the servers, and the balancers they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load.nodes.agent import LISTENS
from pytest_kvcache.load.nodes.messages import KEY_ENV
from pytest_kvcache.load.plan import API_KEY
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes.facts import AgentFacts
from pytest_kvcache.serving.nodes.secured import new_key
from pytest_kvcache.serving.plan import ServingPlan


@dataclass(frozen=True)
class Sender:
    """A place from which a share of the load is sent.

    Args:
        place: Its name.
        facts: The agent there.
        port: Returns a port that is free there, at each call.
    """

    place: str
    facts: AgentFacts
    port: Callable[[], int]


def refuse_balancer(profile: Profile, settings: RaySettings) -> None:
    """Return if load nodes can send through the profile's balancer.

    Args:
        profile: What is served.
        settings: How many load nodes there are, and whether they are on other machines.

    Raises:
        ConfigError: They cannot reach it, or would reach more than is for them.
    """
    why = _unreachable(profile.balancer) if settings.load_nodes and settings.address else ""
    if why:
        raise ConfigError(
            f"load nodes cannot send through the balancer {profile.balancer.kind}: {why}",
            where=f"profiles.{profile.name}.ray.load_nodes",
            todo=f"set profiles.{profile.name}.balancer.kind to haproxy, nginx or none, without a template",
        )


def _unreachable(balancer: Balancer) -> str:
    if balancer.kind == "vllm-router":
        return "its control has no key, so that it listens on loopback of the machine of pytest"
    if balancer.template is not None:
        return "what a template of your own would open to the whole cluster is not known"
    if balancer.kind == "url" and _is_loopback(urlsplit(balancer.url).hostname or ""):
        return f"{balancer.url} is on loopback of the machine of pytest"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def with_load_nodes(plan: ServingPlan, senders: Sequence[Sender]) -> ServingPlan:
    """Return the plan with an agent of the load at each place, which has a key of the boot and the servers' key.

    Args:
        plan: Plan of a pair, which has its key.
        senders: Where the load is sent from; none leaves the plan as it is.
    """
    if not senders:
        return plan
    key = new_key()
    addresses = [f"{bracketed(each.facts.address)}:{each.port()}" for each in senders]
    components = [
        Component(
            name=f"load-node-{index}",
            argv=(str(each.facts.python), "-m", "pytest_kvcache.cli", "load-node", "--listen", address),
            stage="servers",
            secret_env={KEY_ENV: key, API_KEY: plan.api_key},
            ready_line=LISTENS,
            place=each.place,
        )
        for index, (each, address) in enumerate(zip(senders, addresses, strict=True))
    ]
    return replace(plan, components=(*plan.components, *components), load_nodes=tuple(addresses), load_node_key=key)
