"""The decision: up to three fresh boots against a stored cell of six or more.

`decide` is called after every boot with all boots so far. It depends on nothing else: not on the order of boots, not on
what it said before. `needs-boot` is its way to ask for one more; everything else is final.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_kvcache.verdict import canary
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.comparability import differences
from pytest_kvcache.verdict.evidence import Boot, CellVerdict, Evidence, Gate, Status, counted, share
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome, judge
from pytest_kvcache.verdict.metrics import Metric, judged_of
from pytest_kvcache.verdict.spread import degrees, level, mean, usable

__all__ = ["Boot", "CellVerdict", "Evidence", "Gate", "Status", "decide", "share"]

#: The key that the contexts of one tier differ in, and may.
_CONTEXT_KEY = "workload.context_tokens"


def decide(
    evidence: Evidence,
    stored: StoredCell | None,
    *,
    family: int,
    siblings: Sequence[StoredCell] = (),
    policy: Policy | None = None,
    another_boot: bool = True,
) -> CellVerdict:
    """Judge the boots so far against the stored cell.

    In this order: `invalid` (a boot has a fault or no figure), `incomparable` (others used the servers),
    `no-baseline`, `incomparable` (keys, workload or canary differ), `inconclusive` (the baseline is too small), then by
    gates: `regressed` if any gate is; else `needs-boot` while one is open, `inconclusive` when boots are exhausted or a
    gate's margin is too wide; else `improved` if any gate is, else `pass`. A baseline of fewer than
    `policy.least_boots` may still say `regressed`, since the t interval holds for it too, but asks for no boots and
    passes nothing.

    Args:
        evidence: At least one boot, at most `policy.looks`.
        stored: The cell's baseline; None where it has none.
        family: Declared gates: tiers x contexts x metrics, whatever this session selects.
        siblings: Baselines of the tier's other contexts, for the pooled spread. Those that are not of the same tier and
            environment are left out.
        policy: The rules; the default ones for None.
        another_boot: False where none can be had (time is up): an open gate is then `inconclusive`.

    Raises:
        ValueError: No boots, or more than the policy looks at: measuring again until it passes is not a test.
    """
    policy = policy or Policy()
    count = len(evidence.boots)
    if not 1 <= count <= policy.looks:
        raise ValueError(f"{count} boots for at most {policy.looks} looks")
    metrics = judged(policy.metrics, evidence.boots, stored)
    if not metrics:
        return CellVerdict("inconclusive", reasons=(nothing_judged(policy),), boots=count, fixed_boots=policy.looks)
    policy = replace(policy, metrics=metrics)
    faults = _faults(evidence.boots, policy.metrics)
    if faults:
        return CellVerdict("invalid", reasons=faults, boots=count, fixed_boots=policy.looks)
    if others := tuple(f"boot {n}: {line}" for n, boot in enumerate(evidence.boots, start=1) for line in boot.foreign):
        return CellVerdict("incomparable", reasons=others, boots=count, fixed_boots=policy.looks)
    if stored is None:
        return CellVerdict("no-baseline", boots=count, fixed_boots=policy.looks)
    different = incomparable(evidence, stored, policy)
    if different:
        return CellVerdict("incomparable", reasons=different, boots=count, fixed_boots=policy.looks)
    tier = tier_of(stored, siblings)
    # The rules as this baseline lets them be kept: all that follows says the same of the adjustment.
    kept = replace(policy, adjust_for=usable(tier, policy.adjust_for))
    gates = _gates(evidence.boots, stored, tier, family, kept)
    status, reasons = _combine(gates, stored, kept, more=another_boot and count < policy.looks)
    if not gates:
        reasons += _untested(evidence.boots, stored, policy.metrics)
    notes = _notes(stored, evidence.boots, kept, wanted=policy.adjust_for)
    return CellVerdict(status, gates, reasons, notes, count, policy.looks)


def incomparable(evidence: Evidence, stored: StoredCell, policy: Policy) -> tuple[str, ...]:
    """Return a line for every key, hash, canary and metric that keeps the two from being compared; empty for none.

    What neither has and no tier must have, such as hits where nothing is offloaded, keeps nothing from being compared.
    """
    lines = differences(stored.comparability, evidence.comparability)
    if stored.workload != evidence.workload:
        lines.append(f"workload hash: {stored.workload:.12} -> {evidence.workload:.12}")
    lines += canary.differences(
        [b.canary for b in stored.boots], [b.canary for b in evidence.boots], tolerance=policy.canary_tolerance
    )
    lines += [
        f"{metric.label}: the baseline has no {metric.key}; record it anew with --update-baselines"
        for metric in stored.unmeasured(judged(policy.metrics, evidence.boots, stored))
    ]
    return tuple(lines)


def judged(metrics: Sequence[Metric], boots: Sequence[Boot], stored: StoredCell | None) -> tuple[Metric, ...]:
    """Return the metrics without those optional ones that neither the boots nor the baseline have."""
    return judged_of(metrics, [b.figures for b in boots] + [b.figures for b in (stored.boots if stored else ())])


def tier_of(stored: StoredCell, siblings: Sequence[StoredCell]) -> tuple[StoredCell, ...]:
    """Return the cells whose boots may be pooled with those of `stored`, itself first: same tier and environment.

    Context length apart, all comparability keys must agree. A cell of the same address is taken once.
    """

    def keys(cell: StoredCell) -> dict[str, str]:
        return {k: v for k, v in cell.comparability.items() if k != _CONTEXT_KEY}

    found = {stored.cell.context_tokens: stored}
    place = stored.cell.model_copy(update={"context_tokens": 1})
    for cell in sorted(siblings, key=lambda c: c.cell.context_tokens):
        alike = cell.cell.model_copy(update={"context_tokens": 1}) == place and keys(cell) == keys(stored)
        if alike:
            found.setdefault(cell.cell.context_tokens, cell)
    return tuple(found.values())


def nothing_judged(policy: Policy) -> str:
    """Return why a tier that has none of the metrics is not judged."""
    return f"this tier has none of what is judged: {', '.join(metric.label for metric in policy.metrics)}"


def unusable(boot: Boot, metrics: Sequence[Metric]) -> list[str]:
    """Return why nothing may rest on a boot: its faults, and what of the metrics it has not."""
    missing = [f"{metric.label} could not be measured" for metric in metrics if not metric.measured(boot.figures)]
    return [*boot.faults, *missing]


def _faults(boots: Sequence[Boot], metrics: Sequence[Metric]) -> tuple[str, ...]:
    return tuple(f"boot {n}: {line}" for n, boot in enumerate(boots, start=1) for line in unusable(boot, metrics))


def _gates(
    boots: Sequence[Boot], stored: StoredCell, tier: Sequence[StoredCell], family: int, policy: Policy
) -> tuple[Gate, ...]:
    reading = policy.adjust_for
    if min(degrees(tier, metric, adjust_for=reading) for metric in policy.metrics) < policy.least_df:
        return ()
    gates = []
    for metric in policy.metrics:
        old = level(tier, metric, adjust_for=reading)
        new = mean([metric.of(boot.figures) for boot in boots])
        speed = mean([math.log(boot.canary[reading]) for boot in boots]) if reading else old.reading
        explained = old.explained(speed)
        effect = new - old.mean - explained
        bounds = judge(
            effect,
            old.sd,
            df=old.df,
            baseline_boots=len(stored.boots),
            new_boots=len(boots),
            family=family,
            policy=policy,
            metric=metric.key,
            days=stored.days(),
            leverage=old.leverage(speed),
            usual_leverage=old.usual_leverage,
        )
        outcome = Outcome(int(bounds.outcome))
        if len(stored.boots) < policy.least_boots and outcome in {Outcome.PASS, Outcome.IMPROVED}:
            outcome = Outcome.OPEN  # a small baseline shows a regression, and nothing else
        gates.append(
            Gate(
                metric,
                outcome,
                old=metric.natural(old.mean),
                new=metric.natural(new),
                effect=effect,
                lower=float(bounds.lower),
                upper=float(bounds.upper),
                margin=float(bounds.margin),
                sd=old.sd,
                df=old.df,
                explained=explained,
            )
        )
    return tuple(gates)


def _untested(boots: Sequence[Boot], stored: StoredCell, metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return old → new of every metric where boots are too few for an interval: it may be far more than chance."""
    lines = []
    for metric in metrics:
        old = mean([metric.of(boot.figures) for boot in stored.boots])
        new = mean([metric.of(boot.figures) for boot in boots])
        lines.append(
            f"{metric.label}: {metric.natural(old):.4g} -> {metric.natural(new):.4g}, worse by "
            f"{share(new - old):+.0%}, with too few boots to tell that from chance"
        )
    return tuple(lines)


def _combine(
    gates: tuple[Gate, ...], stored: StoredCell, policy: Policy, *, more: bool
) -> tuple[Status, tuple[str, ...]]:
    outcomes = {gate.outcome for gate in gates}
    if Outcome.REGRESSED in outcomes:
        return "regressed", ()
    if len(stored.boots) < policy.least_boots:
        return "inconclusive", (
            f"the baseline has {counted(len(stored.boots), 'boot')}, gates need {policy.least_boots}",
        )
    if not gates:
        adjusted = ", of which the slope on the machine's speed takes one" if policy.adjust_for else ""
        return "inconclusive", (f"the tier's baselines have fewer than {policy.least_df} degrees of freedom{adjusted}",)
    return _by_gates(gates, policy, more=more)


def _by_gates(gates: tuple[Gate, ...], policy: Policy, *, more: bool) -> tuple[Status, tuple[str, ...]]:
    outcomes = {gate.outcome for gate in gates}
    wide = tuple(
        f"{g.metric.label}: boots spread by {share(g.sd):.1%}, so that only a change of {share(g.margin):+.0%} could be"
        f" told, and at most {policy.widest_margin_of(g.metric.key):+.0%} may pass"
        for g in gates
        if g.outcome == Outcome.TOO_WIDE
    )
    if wide and Outcome.OPEN not in outcomes:
        return "inconclusive", wide
    if Outcome.OPEN in outcomes:
        if more:
            return "needs-boot", wide
        undecided = tuple(
            f"{g.metric.label}: between {share(g.lower):+.0%} and {share(g.upper):+.0%}, margin {share(g.margin):+.0%}"
            for g in gates
            if g.outcome == Outcome.OPEN
        )
        return "inconclusive", wide + undecided
    return ("improved" if Outcome.IMPROVED in outcomes else "pass"), ()


def _notes(stored: StoredCell, boots: Sequence[Boot], policy: Policy, *, wanted: str) -> tuple[str, ...]:
    notes = []
    name = policy.adjust_for
    if name:
        old = math.exp(mean([math.log(boot.canary[name]) for boot in stored.boots]))
        new = math.exp(mean([math.log(boot.canary[name]) for boot in boots]))
        notes.append(f"effects are what the machine's speed does not explain: canary {name} {old:.4g} -> {new:.4g} s")
    elif wanted:
        notes.append(
            f"not adjusted for the machine's speed: the baseline's boots have no readings of {wanted} that differ"
        )
    if len({boot.run_id for boot in stored.boots}) == 1 and not all(
        policy.day_sd_of(metric.key) for metric in policy.metrics
    ):
        notes.append("all boots of the baseline are of one session: what differs from day to day is not in its spread")
    return tuple(notes)
