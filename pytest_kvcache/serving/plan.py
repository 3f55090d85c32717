"""The plan of a run: a pure function from profile and tier to every process, file and folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.serving import lmcache
from pytest_kvcache.serving import versions as older
from pytest_kvcache.serving.balancer import router
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.names import lmcache_name, server_name
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.vllm import vllm_server
from pytest_kvcache.telemetry import internal_api
from pytest_kvcache.telemetry.allotment import Allotment, dealt

_MAX_INFLIGHT = 8192


class EngineTools(Protocol):
    """What a plan needs from an engine environment."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of its packages, by distribution name; an engine that tells none counts as a current one."""

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return the command that starts vLLM's OpenAI server with `model`."""

    def program(self, name: str) -> str:
        """Return the path of the program `name` of the environment."""


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


def build_plan(
    profile: Profile,
    tier: TierPlan,
    *,
    tools: EngineTools,
    model: str,
    port: Callable[[], int],
    scratch: Path,
    gpus: Allotment | None = None,
) -> ServingPlan:
    """Return the plan of a pair of `profile` on `tier`.

    Args:
        profile: Profile to serve.
        tier: Plan of the tier, with what the tier adds.
        tools: Programs of the engine environment.
        model: Name of the model that vLLM loads, or its folder relative to `scratch`, where the processes run.
        port: Returns a free port at each call.
        scratch: Folder for generated files, temporary files and sockets of the processes.
        gpus: GPUs that the caller may use, given to the servers in turn; None for those of the machine, by number.

    Raises:
        ConfigError: Too few GPUs are allotted.
    """
    dealt_gpus = dealt(gpus, servers=profile.servers, each=profile.gpus_per_server)
    common = {"TMPDIR": str(scratch)}
    components = list(tier.storage)
    urls: dict[str, str] = {}
    metrics: dict[str, str] = {}
    for index in range(profile.servers):
        connector = None
        env = common
        files: dict[Path, str] = {}
        folders: tuple[Path, ...] = ()
        secrets = {}
        if tier.offload is not None and profile.lmcache_mode == "mp":
            lm_port, http_port = port(), port()
            server = lmcache.lmcache_server(
                tools.program("lmcache"),
                index=index,
                profile=profile,
                offload=tier.offload.of_server(index),
                port=lm_port,
                http_port=http_port,
                versions=tools.versions,
                gpus=dealt_gpus[index],
                env={**common, **tier.env},
                secret_env=tier.secret_env,
            )
            components.append(server)
            metrics[server.name] = f"http://127.0.0.1:{http_port}/metrics"
            connector = lmcache.mp_connector(lm_port)
        elif tier.offload is not None:
            config = scratch / f"lmcache-{index}.yaml"
            offload = tier.offload.of_server(index)
            files = {config: lmcache.in_process_yaml(profile, offload)}
            own = scratch / lmcache_name(index)
            folders = (own,)
            env = {**common, **tier.env, **lmcache.in_process_env(offload, config, own, ranks=profile.ranks)}
            secrets = dict(tier.secret_env)
            connector = lmcache.in_process_connector(server_name(index), tools.versions)
            for rank in range(profile.ranks):
                metrics[lmcache_name(index, rank)] = internal_api.metrics_url(own / lmcache.SOCKET, rank)
        vllm_port = port()
        components.append(
            vllm_server(
                tools.vllm_launch(model),
                index=index,
                profile=profile,
                port=vllm_port,
                connector=connector,
                versions=tools.versions,
                gpus=dealt_gpus[index],
                env=env,
                secret_env=secrets,
                files=files,
                folders=folders,
            )
        )
        urls[server_name(index)] = f"http://127.0.0.1:{vllm_port}"
        metrics[server_name(index)] = f"http://127.0.0.1:{vllm_port}/metrics"
    router_port = port()
    components.append(
        router(
            tools.program("vllm-router"),
            workers=list(urls.values()),
            port=router_port,
            metrics_port=port(),
            max_inflight=_MAX_INFLIGHT,
        )
    )
    return ServingPlan(
        tier=tier,
        components=tuple(components),
        base_url=f"http://127.0.0.1:{router_port}/v1",
        model=profile.served_name,
        server_urls=urls,
        metrics_urls=metrics,
        extra_body=tier.request_fields(in_process=profile.lmcache_mode == "in-process"),
        lacks=tuple(older.losses(tools.versions, profile, tier.offload)),
    )
