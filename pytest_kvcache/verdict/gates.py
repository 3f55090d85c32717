"""The kinds of gates beside the metrics that are compared with a baseline, and what each came to (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_kvcache.verdict.gains import Gain
from pytest_kvcache.verdict.limits import Limit, LimitVerdict
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.token_account import TokenVerdict


@dataclass(frozen=True)
class TokenGate:
    """Where the tokens of prompts came from, against the baseline's boots or arm A.

    Args:
        tolerance: Share of all prompt tokens by which a source may differ.
    """

    tolerance: float = 0.0
    short: str = "tokens"
    label: str = "where prompt tokens came from"


#: Gates that a profile declares, and what `kv_gate` may be.
DeclaredGate = TokenGate | Limit | Gain
AnyGate = Metric | DeclaredGate


@dataclass(frozen=True)
class GateVerdict:
    """What a gate that is no metric came to.

    Args:
        gate: Which.
        status: `pass`, `improved`, `regressed`, `inconclusive`, `no-baseline`, `incomparable` or `invalid`.
        line: In one line, for people: figures with their units.
        reasons: What a reader should know besides, a line each.
        figures: What it rests on, for programs, in place of what its cell has under the same name.
    """

    gate: DeclaredGate
    status: str
    line: str
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)


def told_tokens(gate: TokenGate, found: TokenVerdict) -> GateVerdict:
    """Return what an exact gate came to, for people."""
    if found.status == "inconclusive":
        return GateVerdict(gate, found.status, f"{gate.label}: {found.reasons[0]}", found.reasons[1:])
    if not found.differences:
        within = f" within {gate.tolerance:.1%}" if gate.tolerance else ""
        line = f"{gate.label}: {found.prompt_tokens:,} tokens as in the baseline{within}"
        return GateVerdict(gate, found.status, line, found.reasons)
    first, *others = found.differences
    more = f", and {len(others)} more" if len(others) > 1 else "" if not others else f"; {others[0]}"
    details = [f"boot {each.boot}: {each}" for each in found.differences]
    return GateVerdict(
        gate, found.status, f"{gate.label}: {first}{more}, of {found.prompt_tokens:,}", (*details, *found.reasons)
    )


def told_limit(limit: Limit, found: LimitVerdict) -> GateVerdict:
    """Return what a limit came to, for people."""
    if found.status == "inconclusive":
        return GateVerdict(limit, found.status, found.reason)
    kept = "within" if found.status == "pass" else "beyond"
    line = f"{limit.label}: {found.value:.4g}, {kept} its limit of {limit.relation} {limit.bound:.4g}"
    return GateVerdict(limit, found.status, line)


def worst(statuses: Sequence[str]) -> str:
    """Return the status that a cell has whose gates have these: the one that a person must see first."""
    order = ("invalid", "regressed", "no-baseline", "incomparable", "inconclusive", "improved")
    return min(statuses, key=lambda status: order.index(status) if status in order else len(order))
