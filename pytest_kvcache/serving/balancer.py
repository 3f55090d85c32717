"""The load balancer in front of a pair: vllm-router, round robin."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kvcache.serving.component import Component


def router(program: str, *, workers: Sequence[str], port: int, metrics_port: int, max_inflight: int) -> Component:
    """Return the component of the router.

    Args:
        program: Path of `vllm-router`.
        workers: Base URLs of the servers, without /v1.
        port: Port to listen on, at 127.0.0.1.
        metrics_port: Port of the router's Prometheus endpoint, at 127.0.0.1.
        max_inflight: Requests that may be under way before the router refuses more.

    Retries and the circuit breaker are off: a failed request must show as failed, on the server that failed it.
    """
    return Component(
        name="router",
        argv=(
            program,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--policy", "round_robin",
            "--worker-urls", *workers,
            "--prometheus-host", "127.0.0.1",
            "--prometheus-port", str(metrics_port),
            "--worker-startup-check-interval", "1",
            "--max-concurrent-requests", str(max_inflight),
            "--disable-retries",
            "--disable-circuit-breaker",
            "--log-level", "warning",
        ),
        stage="balancer",
        ready_url=f"http://127.0.0.1:{port}/health",
    )  # fmt: skip
