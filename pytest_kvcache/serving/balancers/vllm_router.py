"""vllm-router (vllm-project/router), with any of its policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.serving.balancers.base import MAX_INFLIGHT, BalancerPlan, EventSource, Front, Plain
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.places import LOOPBACK

_BY_EVENTS = "kv_aware"


class VllmRouter(Plain):
    """A process of vllm-router.

    Retries and the circuit breaker are off: a failed request must show as failed, on the server that failed it.
    """

    program = "vllm-router"
    install = "pip install 'pytest-kvcache[engine]' there, or `pytest-kvcache setup`"

    def plan(self, settings: Balancer, front: Front) -> BalancerPlan:
        """Return the router's process, which listens for requests and for scrapes of its counters."""
        port, metrics_port = front.port(), front.port()
        events: tuple[EventSource, ...] = ()
        if settings.policy == _BY_EVENTS:
            events = tuple(EventSource(f"{LOOPBACK}:{front.port()}", _name(i)) for i in range(len(front.servers)))
        component = Component(
            name="router",
            argv=(
                front.tools.program(self.program),
                "--host", front.host,
                "--port", str(port),
                "--policy", settings.policy,
                "--worker-urls", *front.servers.values(),
                "--prometheus-host", front.host,
                "--prometheus-port", str(metrics_port),
                # Also how often power_of_two asks the servers for their load (s).
                "--worker-startup-check-interval", "1",
                "--max-concurrent-requests", str(MAX_INFLIGHT),
                "--disable-retries",
                "--disable-circuit-breaker",
                "--log-level", "warning",
                *(_events(front, events) if events else ()),
                *settings.args,
            ),
            stage="balancer",
            ready_url=f"{front.url(port)}/health",
        )  # fmt: skip
        return BalancerPlan((f"{front.url(port)}/v1",), component, f"{front.url(metrics_port)}/metrics", events)

    def server_args(self, settings: Balancer, scratch: Path, index: int) -> tuple[str, ...]:
        """Return what has a server tell of its blocks, which kv_aware goes by.

        It is told over a Unix socket, since vLLM (0.32) listens for TCP on all addresses of a machine or not at all.
        """
        if settings.policy != _BY_EVENTS:
            return ()
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": _socket(scratch, index)}
        return ("--kv-events-config", json.dumps(events, separators=(",", ":")))


def _events(front: Front, events: Sequence[EventSource]) -> tuple[str, ...]:
    sources = [f"{url}=tcp://{each.door}" for url, each in zip(front.servers.values(), events, strict=True)]
    return (
        *(word for source in sources for word in ("--kv-event-source", source)),
        "--kv-event-block-size", str(front.block_tokens),
        "--kv-event-model", front.model,
    )  # fmt: skip


def _socket(scratch: Path, index: int) -> str:
    return f"ipc://{scratch}/{_name(index)}"


def _name(index: int) -> str:
    return f"kv-events-{index}"
