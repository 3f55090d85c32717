"""The plan of a run: a pure function from profile and tier to every process, file and folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.serving import lmcache
from pytest_kvcache.serving import versions as older
from pytest_kvcache.serving.balancer import router
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.names import lmcache_name, server_name
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.places import Placement
from pytest_kvcache.serving.vllm import vllm_server
from pytest_kvcache.telemetry import internal_api

_MAX_INFLIGHT = 8192


@dataclass(frozen=True)
class ServingPlan:
    """A pair of servers, its balancer and its storage, ready to be started.

    Args:
        tier: Plan of the tier that the pair serves with.
        components: Components in the order of their stages.
        base_url: URL of the balancer with /v1, to which a workload sends its requests.
        model: The model name that requests carry.
        server_urls: Base URL of each vLLM server by name, without /v1.
        metrics_urls: Prometheus endpoint of each vLLM and LMCache by component name; an LMCache inside vLLM has one for
            each rank (`lmcache-0`, `lmcache-0.1`).
        extra_body: Fields that each request must carry (`TierPlan.request_fields`).
        lacks: What the engine does not tell because it is older, a line each.
    """

    tier: TierPlan
    components: tuple[Component, ...]
    base_url: str
    model: str
    server_urls: dict[str, str]
    metrics_urls: dict[str, str]
    extra_body: dict[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


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
        vllm_port = place.port()
        components.append(
            vllm_server(
                place,
                index=index,
                profile=profile,
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
    front = placement.balancer
    router_port = front.port()
    components.append(
        router(
            front,
            workers=list(urls.values()),
            port=router_port,
            metrics_port=front.port(),
            max_inflight=_MAX_INFLIGHT,
        )
    )
    return ServingPlan(
        tier=tier,
        components=tuple(components),
        base_url=f"{front.url(router_port)}/v1",
        model=profile.served_name,
        server_urls=urls,
        metrics_urls=metrics,
        extra_body=tier.request_fields(in_process=profile.lmcache_mode == "in-process"),
        lacks=tuple(older.losses(versions, profile, tier.offload)),
    )
