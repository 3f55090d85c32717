"""A verdict in words: a headline, and after each look what is known and what one more boot would cost."""

from __future__ import annotations

from pytest_kvcache.verdict.evidence import counted
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.paired import PairedVerdict
from pytest_kvcache.verdict.procedure import CellVerdict, Gate, share

_STATES = {
    Outcome.OPEN: "undecided",
    Outcome.PASS: "pass",
    Outcome.REGRESSED: "REGRESSED",
    Outcome.IMPROVED: "improved",
    Outcome.TOO_WIDE: "cannot be told",
}


#: Outcomes that say neither that a gate passed nor that it did not.
UNDECIDED = frozenset({Outcome.OPEN, Outcome.TOO_WIDE})


def gate_line(gate: Gate) -> str:
    """Return one metric in a line: old → new, by how much worse, the interval, the margin, what follows."""
    state = _STATES[gate.outcome]
    return f"{gate.metric.label}: {gate.old:.4g} -> {gate.new:.4g}, {_effect(gate)}: {state}"


def deciding_gate(verdict: CellVerdict | PairedVerdict) -> Gate | None:
    """Return the gate that a verdict is told by, None where nothing was compared.

    A regressed gate stands before an undecided one, and that before all others. Of several regressed gates it is the
    one with the largest effect; of several undecided ones the one that is farthest from passing; where the verdict is
    `improved`, the one that improved most; else the one with the largest effect.
    """
    if not verdict.gates:
        return None
    if regressed := [g for g in verdict.gates if g.outcome == Outcome.REGRESSED]:
        return max(regressed, key=lambda g: g.effect)
    if undecided := [g for g in verdict.gates if g.outcome in UNDECIDED]:
        return max(undecided, key=lambda g: g.upper - g.margin)
    best = verdict.status == "improved"
    return (min if best else max)(verdict.gates, key=lambda g: g.effect)


def headline(verdict: CellVerdict | PairedVerdict) -> str:
    """Return the verdict in one line that stands alone: the status, and the metric or reason that decides it."""
    gate = deciding_gate(verdict)
    if verdict.status == "regressed" and gate is not None:
        return f"regressed: {gate.metric.label} {gate.old:.4g} -> {gate.new:.4g}, {_effect(gate)}"
    if verdict.status == "improved" and gate is not None:
        return f"improved: {gate.metric.label} {gate.old:.4g} -> {gate.new:.4g}: the baseline is stale"
    if verdict.reasons:
        return f"{verdict.status}: {verdict.reasons[0]}"
    if gate is not None and gate.outcome in UNDECIDED:
        return f"{verdict.status}: {gate_line(gate)}"
    if verdict.status == "pass":
        widest = max(verdict.gates, key=lambda g: g.margin)
        return f"pass: nothing is worse by its margin ({widest.metric.label}: {share(widest.margin):.0%})"
    return verdict.status


def after_look(verdict: CellVerdict, *, minutes_a_boot: float) -> str:
    """Return what is known after a look, and what one more boot costs or how many were saved.

    Args:
        verdict: After the last boot.
        minutes_a_boot: Engine minutes that a boot with its workload took.
    """
    took = f"after {counted(verdict.boots, 'boot')}: {headline(verdict)}"
    if not verdict.final:
        return f"{took}; one more boot costs {minutes_a_boot:.1f} engine minutes"
    saved = verdict.fixed_boots - verdict.boots
    used = f"{verdict.boots * minutes_a_boot:.1f} engine minutes"
    return f"{took}; {used}" + (f", a fixed design takes {verdict.fixed_boots * minutes_a_boot:.1f}" if saved else "")


def after_pairs(verdict: PairedVerdict, *, minutes_a_pair: float, more: int, fixed: int) -> str:
    """Return what is known after a look at an A/B, and what the next look costs or how much was saved.

    Args:
        verdict: After the last pair.
        minutes_a_pair: Engine minutes that a boot of each took with its workload.
        more: Pairs to the next look.
        fixed: Pairs of a design without looks.
    """
    took = f"after {verdict.pairs} pairs: {headline(verdict)}"
    if verdict.status == "needs-boot":
        return f"{took}; {more} more pairs cost {more * minutes_a_pair:.1f} engine minutes"
    used = f"{verdict.pairs * minutes_a_pair:.1f} engine minutes"
    return f"{took}; {used}" + (f", a fixed design takes {fixed * minutes_a_pair:.1f}" if fixed > verdict.pairs else "")


def _effect(gate: Gate) -> str:
    low, high = share(gate.lower), share(gate.upper)
    beside = f" beside {share(gate.explained):+.1%} by the machine's speed" if gate.explained else ""
    return f"worse by {share(gate.effect):+.1%} [{low:+.1%}, {high:+.1%}]{beside}, margin {share(gate.margin):.1%}"
