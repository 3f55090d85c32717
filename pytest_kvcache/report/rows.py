"""What one gate came to, for every output: verdict, ratio, interval, boots, minutes."""

from __future__ import annotations

from typing import Any

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.verdict.gates import AnyGate, DeclaredGate, GateVerdict, TokenGate, worst
from pytest_kvcache.verdict.headline import deciding_gate
from pytest_kvcache.verdict.in_the_making import Change, InTheMaking
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.procedure import Gate, share

#: Statuses of a declared gate that nobody needs to look at.
_GOOD = frozenset({"pass", "improved", "recorded", "updated"})
_STATUS = {
    Outcome.PASS: "pass",
    Outcome.REGRESSED: "regressed",
    Outcome.IMPROVED: "improved",
    Outcome.OPEN: "inconclusive",
    Outcome.TOO_WIDE: "inconclusive",
}


def declared_gate(result: CellResult, gate: AnyGate | None) -> GateVerdict | None:
    """Return what a declared gate came to; where no gate is named, the one of them that fails, if one does."""
    if gate is None:
        return next((each for each in result.gate_verdicts if each.status not in _GOOD), None)
    return next((each for each in result.gate_verdicts if each.gate == gate), None)


def gate_of(result: CellResult, metric: AnyGate | None) -> Gate | None:
    """Return the gate of a metric, the one that decides where none is named; None where nothing was compared."""
    if result.verdict is None or isinstance(metric, DeclaredGate):
        return None
    if metric is not None:
        return next((gate for gate in result.verdict.gates if gate.metric == metric), None)
    return deciding_gate(result.verdict)


def making_of(result: CellResult, gate: AnyGate | None) -> InTheMaking | None:
    """Return what was recorded beside older boots; None of a gate that the profile declares: it has its own verdict."""
    return None if isinstance(gate, DeclaredGate) else result.making


def change_of(result: CellResult, gate: AnyGate | None) -> Change | None:
    """Return a metric's change in a baseline in the making; of the one that is worse by most where none is named."""
    making = making_of(result, gate)
    return making.change(gate if isinstance(gate, Metric) else None) if making else None


def making_lines(result: CellResult, gate: AnyGate | None) -> list[str]:
    """Return old → new in a baseline in the making, a line a metric, and what spreads too widely; else nothing."""
    making = making_of(result, gate)
    return making.lines(gate if isinstance(gate, Metric) else None) if making else []


def making_reasons(result: CellResult, gate: AnyGate | None) -> tuple[str, ...]:
    """Return that a baseline is no gate yet, and what spreads too widely to become one; nothing of other baselines."""
    making = making_of(result, gate)
    if making is None:
        return ()
    shown = [change for change in making.changes if gate is None or change.metric == gate]
    return (making.state, *(change.wide for change in shown if change.wide))


def status(result: CellResult, metric: AnyGate | None) -> str:
    """Return the status of one gate of a cell, or of the whole cell where no metric is named.

    Of the whole cell it is that of the comparison, unless an exact gate or a limit says something worse.
    """
    if isinstance(metric, DeclaredGate):
        return _declared_status(result, metric)
    compared = compared_status(result, metric)
    others = [_declared_status(result, each.gate) for each in result.gate_verdicts] if metric is None else []
    bad = [each for each in others if each not in _GOOD]
    return worst([compared, *bad]) if bad and compared != "refused" else compared


def _declared_status(result: CellResult, gate: DeclaredGate) -> str:
    found = declared_gate(result, gate)
    if found is None:
        return "inconclusive"
    if isinstance(gate, TokenGate) and result.write is not None:
        return result.status  # boots that replace a baseline bring their own account
    if isinstance(gate, TokenGate) and result.refused and found.status in _GOOD | {"no-baseline"}:
        return "refused"
    return found.status


def compared_status(result: CellResult, metric: Metric | None) -> str:
    """Return the status of the comparison with a baseline or between arms, of one metric or of all."""
    gate = gate_of(result, metric)
    settled = result.status in {"pass", "improved", "regressed", "inconclusive"}
    if metric is None or gate is None or not settled:
        return result.status
    return _STATUS[gate.outcome]


def properties(result: CellResult, metric: AnyGate | None) -> dict[str, Any]:
    """Return verdict, ratio, interval, boots and engine minutes of a gate, for JUnit and benchmark rows."""
    found: dict[str, Any] = {
        "verdict": status(result, metric),
        "boots": len(result.runs),
        "engine_minutes": round(sum(result.minutes), 2),
    }
    if (declared := declared_gate(result, metric)) is not None and metric is not None:
        found |= {"gate": declared.line, **declared.figures}
    gate = gate_of(result, metric)
    if gate is not None:
        found |= {
            "ratio": round(gate.ratio, 4),
            "worse_by": round(share(gate.effect), 4),
            "interval_low": round(share(gate.lower), 4),
            "interval_high": round(share(gate.upper), 4),
            "margin": round(share(gate.margin), 4),
        }
    making, change = making_of(result, metric), change_of(result, metric)
    if making is not None and change is not None:
        found |= _making(making, change) | {"message": "\n".join(making_lines(result, metric))}
    return found


def junit_properties(result: CellResult, gate: AnyGate | None, outcome: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return which gate of which cell a test judged, and its outcome, as JUnit properties.

    Args:
        result: The cell.
        gate: None for the whole cell.
        outcome: As `properties` returns it.
    """
    named = {"tier": result.cell.tier, "context_tokens": result.context_tokens}
    named |= {} if gate is None else {"metric": gate.short}
    return [(f"kv_{name}", value) for name, value in (named | outcome).items()]


def _making(making: InTheMaking, change: Change) -> dict[str, Any]:
    """Return old, new and the words of a baseline in the making; a figure that is not known is left out."""
    known = {
        "old": change.old,
        "new": change.new,
        "ratio": change.ratio,
        "worse_by": None if change.effect is None else share(change.effect),
        "sd": None if change.sd is None else share(change.sd),
    }
    found: dict[str, Any] = {key: float(f"{value:.4g}") for key, value in known.items() if value is not None}
    return found | {"baseline_boots": making.boots, "baseline_boots_needed": making.needed}
