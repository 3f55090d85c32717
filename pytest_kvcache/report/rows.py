"""What one gate came to, for every output: verdict, ratio, interval, boots, minutes."""

from __future__ import annotations

from typing import Any

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.verdict.headline import deciding_gate
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.procedure import Gate, share

_STATUS = {
    Outcome.PASS: "pass",
    Outcome.REGRESSED: "regressed",
    Outcome.IMPROVED: "improved",
    Outcome.OPEN: "inconclusive",
    Outcome.TOO_WIDE: "inconclusive",
}


def gate_of(result: CellResult, metric: Metric | None) -> Gate | None:
    """Return the gate of a metric, the one that decides where none is named; None where nothing was compared."""
    if result.verdict is None:
        return None
    if metric is not None:
        return next((gate for gate in result.verdict.gates if gate.metric == metric), None)
    return deciding_gate(result.verdict)


def status(result: CellResult, metric: Metric | None) -> str:
    """Return the status of one gate of a cell, or of the whole cell where no metric is named."""
    if result.write is not None:
        return "recorded" if result.stored is None else "updated"
    if result.refused:
        return "refused"
    if result.verdict is None:
        return "measured"
    gate = gate_of(result, metric)
    settled = result.verdict.status in {"pass", "improved", "regressed", "inconclusive"}
    if metric is None or gate is None or not settled:
        return result.verdict.status
    return _STATUS[gate.outcome]


def properties(result: CellResult, metric: Metric | None) -> dict[str, Any]:
    """Return verdict, ratio, interval, boots and engine minutes of a gate, for JUnit and benchmark rows."""
    found: dict[str, Any] = {
        "verdict": status(result, metric),
        "boots": len(result.runs),
        "engine_minutes": round(sum(result.minutes), 2),
    }
    gate = gate_of(result, metric)
    if gate is not None:
        found |= {
            "ratio": round(gate.ratio, 4),
            "worse_by": round(share(gate.effect), 4),
            "interval_low": round(share(gate.lower), 4),
            "interval_high": round(share(gate.upper), 4),
            "margin": round(share(gate.margin), 4),
        }
    return found
