"""The verdict of a comparison, on one gate or on a whole cell."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.report.rows import change_of, declared_gate, gate_of, making_reasons, status
from pytest_kvcache.verdict.gates import AnyGate, DeclaredGate
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.paired import PairedVerdict
from pytest_kvcache.verdict.procedure import share

#: Statuses with which a test passes.
SUCCEEDS = frozenset({"pass", "improved", "recorded", "updated", "measured"})
#: Statuses that are neither good nor bad: the test is shown as undecided, and fails under --kv-strict.
UNDECIDED = frozenset({"inconclusive", "incomparable"})


@dataclass(frozen=True)
class Verdict:
    """The verdict of a comparison with a baseline, or of the two sides of `--kv-against`.

    Numbers are None where nothing was compared. Effects are shares: 0.1 is 10 % more time, or a throughput down to
    1/1.10.

    Of boots that were added to a baseline in the making there are `old`, `new` and `worse_by`, neither interval nor
    margin, and `reasons` begins with the words that it is no gate yet (`no gate yet: 3 of 6 boots`).

    Args:
        status: `pass`, `improved`, `regressed`, `inconclusive`, `incomparable`, `invalid`, `no-baseline`; `recorded`,
            `updated` or `refused` where baselines are stored; `measured` where nothing was to be compared.
        metric: The metric that the numbers belong to; for a whole cell, the metric that decides. None for a gate that
            the profile declares.
        old: Value of the baseline as it was before the session, or of side A, in the metric's own unit.
        new: Value that was measured now, in the metric's own unit.
        worse_by: Best estimate of the effect, as a share; positive is worse.
        interval: Lower and upper end of the effect's interval, as shares.
        margin: Share below which the interval's upper end must stay for a pass.
        reasons: Reasons for a status that does not follow from the metric alone.
        boots: Number of new boots behind the verdict.
        against: Whether two sides of `--kv-against` were compared, and not a result with its baseline.
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
        """Whether a test that checks this verdict passes."""
        return self.status in SUCCEEDS

    @property
    def undecided(self) -> bool:
        """Whether the verdict is neither good nor bad: the test is shown as undecided, and fails under --kv-strict."""
        return self.status in UNDECIDED


def verdict_of(cell: CellResult, gate: AnyGate | None) -> Verdict:
    """Return the verdict on one gate of a cell, or on the whole cell where `gate` is None."""
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
