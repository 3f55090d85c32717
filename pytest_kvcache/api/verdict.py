"""What a comparison came to, for a gate or a whole cell."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.report.rows import change_of, declared_gate, gate_of, making_reasons, status
from pytest_kvcache.verdict.gates import AnyGate, DeclaredGate
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.paired import PairedVerdict
from pytest_kvcache.verdict.procedure import share

#: Statuses that a test passes with.
SUCCEEDS = frozenset({"pass", "improved", "recorded", "updated", "measured"})
#: Neither good nor bad: shown as such, and a failure under --kv-strict.
UNDECIDED = frozenset({"inconclusive", "incomparable"})


@dataclass(frozen=True)
class Verdict:
    """What a comparison with a baseline, or of two sides under `--kv-against`, came to.

    Numbers are None where nothing was compared. Effects are shares: 0.1 is 10 % more time, or a throughput down to
    1/1.10.

    Of boots that were added to a baseline in the making there are `old`, `new` and `worse_by`, neither interval nor
    margin, and `reasons` begins with the words that it is no gate yet (`no gate yet: 3 of 6 boots`).

    Args:
        status: `pass`, `improved`, `regressed`, `inconclusive`, `incomparable`, `invalid`, `no-baseline`; `recorded`,
            `updated` or `refused` where baselines are stored; `measured` where nothing was to be compared.
        metric: Which metric the numbers are of: of a whole cell, the one that decides. None of a gate that
            the profile declares.
        old: The baseline's as it was before the session, or that of A, in the metric's own unit.
        new: What was measured now.
        worse_by: The effect.
        interval: It is at least and at most so much worse.
        margin: What the upper end must stay below to pass.
        reasons: Why, where the status is not the metric's alone.
        boots: How many new boots it rests on.
        against: Whether it is of `--kv-against`, and not of a baseline.
    """

    status: str
    metric: Metric | None
    old: float | None
    new: float | None
    worse_by: float | None
    interval: tuple[float, float] | None
    margin: float | None
    reasons: tuple[str, ...]
    boots: int
    against: bool

    @property
    def succeeds(self) -> bool:
        """Whether a test that checks it passes."""
        return self.status in SUCCEEDS

    @property
    def undecided(self) -> bool:
        """Whether it is neither good nor bad: shown as such, and a failure under --kv-strict."""
        return self.status in UNDECIDED


def verdict_of(cell: CellResult, gate: AnyGate | None) -> Verdict:
    """Return what the comparison of one gate of a cell came to, or that of the whole cell where none is named."""
    found, declared = gate_of(cell, gate), declared_gate(cell, gate)
    moved = found or change_of(cell, gate)
    reasons = () if cell.verdict is None or isinstance(gate, DeclaredGate) else cell.verdict.reasons
    reasons += making_reasons(cell, gate)
    return Verdict(
        status=status(cell, gate),
        metric=(gate if isinstance(gate, Metric) else None) if moved is None else moved.metric,
        old=None if moved is None else moved.old,
        new=None if moved is None else moved.new,
        worse_by=None if moved is None or moved.effect is None else share(moved.effect),
        interval=None if found is None else (share(found.lower), share(found.upper)),
        margin=None if found is None else share(found.margin),
        reasons=reasons if declared is None else (*reasons, declared.line, *declared.reasons),
        boots=len(cell.runs),
        against=isinstance(cell.verdict, PairedVerdict),
    )
