"""The plan of a run: a pure function from profile and tier to every process, file and folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.deployment.standing import Standing
from pytest_kvcache.endpoint.address import without_version
from pytest_kvcache.serving import lmcache, relays
from pytest_kvcache.serving import versions as older
from pytest_kvcache.serving.balancers import kinds as balancers
from pytest_kvcache.serving.balancers.base import EventSource, Front
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.control import Control
from pytest_kvcache.serving.names import lmcache_name, server_name
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.places import Placement
from pytest_kvcache.serving.vllm import vllm_server
from pytest_kvcache.telemetry import internal_api

#: LMCache inside vLLM hands its sums to Prometheus once in 10 s.
LMCACHE_COUNTS_EVERY_S = 11.0


@dataclass(frozen=True)
class ServingPlan:
    """A pair of servers, its balancer and its storage, ready to be started.

    Args:
        tier: Plan of the tier that the pair serves with.
        components: Components in the order of their stages.
        base_url: URL of the balancer with /v1, to which a workload sends its requests; without a balancer the first of
            `turn_urls`.
        model: The model name that requests carry.
        server_urls: Base URL of each vLLM server by name, without /v1.
        metrics_urls: Prometheus endpoint of each vLLM and LMCache by component name; an LMCache inside vLLM has one for
            each rank (`lmcache-0`, `lmcache-0.1`).
        extra_body: Fields that each request must carry (`TierPlan.request_fields`).
        lacks: What the engine does not tell because it is older, a line each.
        api_key: Key that requests to the balancer and to the servers carry, "" where everything is on loopback.
        control: Sends requests to endpoints that serve nobody beyond a server's own machine; None where the servers are
            on this one.
        balancer: The balancer as the profile asks for it.
        turn_urls: Without a balancer the URL of each server with /v1, over which the client takes turns; else empty.
        balancer_metrics_url: What the balancer says of itself, "" where nothing.
        events: How the balancer hears of the blocks of each server, by number; empty where it goes by none.
        load_nodes: Addresses (HOST:PORT) of the load nodes among `components`; empty where others send the load.
        load_node_key: Key by which these load nodes and the load process know each other.
        standing: Deployment that was there before, with all of its caches; None for a pair that the run has booted.
    """

    tier: TierPlan
    components: tuple[Component, ...]
    base_url: str
    model: str
    server_urls: dict[str, str]
    metrics_urls: dict[str, str]
    extra_body: dict[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    api_key: str = field(default="", repr=False)
    control: Control | None = field(default=None, repr=False)
    balancer: Balancer = field(default_factory=Balancer)
    turn_urls: tuple[str, ...] = ()
    balancer_metrics_url: str = ""
    events: tuple[EventSource, ...] = ()
    load_nodes: tuple[str, ...] = ()
    load_node_key: str = field(default="", repr=False)
    standing: Standing | None = None

    @property
    def tokenizer_url(self) -> str:
        """Base URL of what has vLLM's tokenizer API: the first server, or the balancer where none is known."""
        return next(iter(self.server_urls.values()), without_version(self.base_url))

    @property
    def counters_lag_s(self) -> float:
        """How long counters may lag behind (s): LMCache inside a vLLM that stands counts every 10 s."""
        shared = len(set(self.metrics_urls.values())) < len(self.metrics_urls)
        return LMCACHE_COUNTS_EVERY_S if shared else 0.0


def build_plan(profile: Profile, tier: TierPlan, placement: Placement) -> ServingPlan:
    """Return the plan of a pair of `profile` on `tier`.

    Args:
        profile: Profile to serve.
        tier: Plan of the tier, with what the tier adds.
        placement: Where each component runs.
    """
    versions = placement.versions
    components = list(tier.storage)
    urls: dict[str, str] = {}
    metrics: dict[str, str] = {}
    for index, (place, gpus) in enumerate(zip(placement.servers, placement.gpus, strict=True)):
        connector = None
        env = common = {"TMPDIR": str(place.scratch)}
        files: dict[Path, str] = {}
        folders: tuple[Path, ...] = ()
        secrets = {}
        if tier.offload is not None and profile.lmcache_mode == "mp":
            beside = placement.caches[index]
            lm_port, http_port = beside.port(), beside.port()
            server = lmcache.lmcache_server(
                beside,
                index=index,
                profile=profile,
                offload=tier.offload.of_server(index),
                port=lm_port,
                http_port=http_port,
                gpus=gpus,
                env={"TMPDIR": str(beside.scratch), **tier.env},
                secret_env=tier.secret_env,
            )
            components.append(server)
            metrics[server.name] = f"{beside.url(http_port)}/metrics"
            connector = lmcache.mp_connector(beside.host, lm_port)
        elif tier.offload is not None:
            config = place.scratch / f"lmcache-{index}.yaml"
            offload = tier.offload.of_server(index)
            files = {config: lmcache.in_process_yaml(profile, offload)}
            own = place.scratch / lmcache_name(index)
            folders = (own,)
            env = {**common, **tier.env, **lmcache.in_process_env(offload, config, own, ranks=profile.ranks)}
            secrets = dict(tier.secret_env)
            connector = lmcache.in_process_connector(server_name(index), versions)
            for rank in range(profile.ranks):
                metrics[lmcache_name(index, rank)] = internal_api.metrics_url(own / lmcache.SOCKET, rank)
        vllm_port = profile.server_port(index) or place.port()
        components.append(
            vllm_server(
                place,
                index=index,
                profile=profile.with_vllm_args(balancers.server_args(profile.balancer, place.scratch, index)),
                port=vllm_port,
                connector=connector,
                gpus=gpus,
                env=env,
                secret_env=secrets,
                files=files,
                folders=folders,
            )
        )
        urls[server_name(index)] = place.url(vllm_port)
        metrics[server_name(index)] = f"{place.url(vllm_port)}/metrics"
    at = placement.balancer
    front = Front(urls, at.host, at.port, at.scratch, at.tools, profile.served_name, profile.block_tokens)
    balanced = balancers.plan(profile.balancer, front)
    for index, each in enumerate(balanced.events):
        name, socket = relays.events_name(index), str(placement.servers[index].scratch / each.socket)
        components.append(relays.relay(name, at, at.tools.program("python"), listen=each.door, connect=socket))
    if balanced.component is not None:
        components.append(replace(balanced.component, place=at.name))
    return ServingPlan(
        tier=tier,
        components=tuple(components),
        base_url=balanced.base_urls[0],
        model=profile.served_name,
        server_urls=urls,
        metrics_urls=metrics,
        extra_body=tier.request_fields(in_process=profile.lmcache_mode == "in-process"),
        lacks=tuple(older.losses(versions, profile, tier.offload)),
        balancer=profile.balancer,
        turn_urls=balanced.base_urls if profile.balancer.kind == "none" else (),
        balancer_metrics_url=balanced.metrics_url,
        events=balanced.events,
    )
