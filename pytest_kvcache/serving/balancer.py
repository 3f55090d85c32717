"""The load balancer in front of a pair: vllm-router, round robin."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.places import Place


def router(place: Place, *, workers: Sequence[str], port: int, metrics_port: int, max_inflight: int) -> Component:
    """Return the component of the router.

    Args:
        place: Where it runs.
        workers: Base URLs of the servers, without /v1.
        port: Port to listen on.
        metrics_port: Port of the router's Prometheus endpoint.
        max_inflight: Requests that may be under way before the router refuses more.

    Retries and the circuit breaker are off: a failed request must show as failed, on the server that failed it.
    """
    return Component(
        name="router",
        argv=(
            place.tools.program("vllm-router"),
            "--host", place.host,
            "--port", str(port),
            "--policy", "round_robin",
            "--worker-urls", *workers,
            "--prometheus-host", place.host,
            "--prometheus-port", str(metrics_port),
            "--worker-startup-check-interval", "1",
            "--max-concurrent-requests", str(max_inflight),
            "--disable-retries",
            "--disable-circuit-breaker",
            "--log-level", "warning",
        ),
        stage="balancer",
        ready_url=f"{place.url(port)}/health",
        place=place.name,
    )  # fmt: skip
