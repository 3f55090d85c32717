"""Exact gates and limits of a cell, from what its boots brought."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.config.gates import ServiceLevel
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.comparability import differences
from pytest_kvcache.verdict.estimate import Estimates, estimate
from pytest_kvcache.verdict.gates import GateVerdict, TokenGate, told_limit, told_tokens
from pytest_kvcache.verdict.limits import Limit, decide_limit
from pytest_kvcache.verdict.token_account import TokenAccount, compare

#: Figures that are of a boot's own time; over several boots they are averaged, while all others are taken over the
#: requests of all of them.
_OF_A_BOOT = ("requests_per_s", "tokens_per_s")


def against_baseline(
    profile: Profile, runs: Sequence[RunResult], stored: StoredCell | None, *, workload: str
) -> tuple[GateVerdict, ...]:
    """Return what each declared gate came to.

    Args:
        profile: What was served; it declares the gates.
        runs: Of all boots of the cell.
        stored: The cell's baseline before this session, None where it has none.
        workload: Hash of what was sent.
    """
    return tuple(_judged(profile, runs, lambda gate: _tokens(gate, runs, stored, workload)))


def against_arm(profile: Profile, a: Sequence[RunResult], b: Sequence[RunResult]) -> tuple[GateVerdict, ...]:
    """Return what each declared gate came to for arm B: its tokens against those of A, its figures against limits."""

    def tokens(gate: TokenGate) -> GateVerdict:
        return told_tokens(gate, compare(_accounts(b), _accounts(a), tolerance=gate.tolerance))

    return tuple(_judged(profile, b, tokens))


def _judged(
    profile: Profile, runs: Sequence[RunResult], tokens: Callable[[TokenGate], GateVerdict]
) -> Iterator[GateVerdict]:
    faults = tuple(f"boot {number}: {fault}" for number, run in enumerate(runs, start=1) for fault in run.faults)
    others = tuple(f"boot {number}: {line}" for number, run in enumerate(runs, start=1) for line in run.foreign)
    declared = profile.declared_gates
    figures = _figures(runs, profile.gates.slo) if any(isinstance(each, Limit) for each in declared) else {}
    finished = sum(int((run.rows["status"] == "ok").sum()) for run in runs)
    for gate in declared:
        if faults:
            yield GateVerdict(gate, "invalid", faults[0], faults[1:])
        elif others:
            yield GateVerdict(gate, "incomparable", others[0], others[1:])
        elif isinstance(gate, Limit):
            yield told_limit(gate, decide_limit(gate, figures, requests=finished))
        else:
            yield tokens(gate)


def _tokens(gate: TokenGate, runs: Sequence[RunResult], stored: StoredCell | None, workload: str) -> GateVerdict:
    if stored is None:
        return GateVerdict(gate, "no-baseline", f"{gate.label}: there is no baseline to compare with")
    different = differences(stored.comparability, runs[0].comparability)
    if stored.workload != workload:
        different.append("what is sent differs")
    if different:
        return GateVerdict(gate, "incomparable", different[0], tuple(different[1:]))
    return told_tokens(
        gate, compare(_accounts(runs), [boot.account for boot in stored.boots], tolerance=gate.tolerance)
    )


def _accounts(runs: Sequence[RunResult]) -> list[TokenAccount | None]:
    return [run.account for run in runs]


def _figures(runs: Sequence[RunResult], slo: ServiceLevel | None) -> Estimates:
    """Return the figures that limits are held against, over all boots."""
    rows = pd.concat([run.rows for run in runs], ignore_index=True)
    duration_s = sum(run.duration_s for run in runs)
    figures = estimate(rows, duration_s=duration_s)
    for key in _OF_A_BOOT:
        values = [run.estimates[key] for run in runs if key in run.estimates]
        if values:
            figures[key] = sum(values) / len(values)
    return figures | (slo.figures(rows, duration_s=duration_s) if slo else {})
