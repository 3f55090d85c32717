"""What the balancer did in each cell and what it costs, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.probes.balancer_latency import BalancerLatency


def balancer_lines(results: Sequence[CellResult], costs: Mapping[str, BalancerLatency]) -> list[str]:
    """Return where the balancer sent the requests of each cell, and what it costs itself.

    Args:
        results: All of the session.
        costs: What was measured, by the balancer's name.
    """
    lines = [f"balancer {name}: {cost.line}" for name, cost in costs.items()]
    for result in results:
        proof = result.runs[-1].proof
        lines.append(f"balancer of {result.label}, context {result.context_tokens}: {proof.routed.line(proof.routing)}")
    return lines
