"""A/B without a baseline: two engines booted in turn, A B B A A B …, decided on the paired differences.

Boots that follow each other share the weather of the machine; their difference does not have it. In the order ABBA a
steady drift cancels within each two pairs (counterbalancing: Cox, "Planning of Experiments", 1958). So the unit is the
pair, the interval is the paired t, and the spread is that of this session's differences, pooled over the contexts of
the tier. No baseline is read, so no margin can be widened by one: it is the declared margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pytest_kvcache.verdict.interim import Policy, t_quantile
from pytest_kvcache.verdict.interval import Bounds, Outcome, classify, pooled
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.procedure import Boot, Gate, Status, judged, nothing_judged, unusable

#: How many pairs there are at each look: one, two and three blocks ABBA.
PAIRS_AT_LOOK = (2, 4, 6)


@dataclass(frozen=True)
class BootPair:
    """A boot of each engine, one right after the other.

    Args:
        a: Of the engine that is used now.
        b: Of the one that might be.
    """

    a: Boot
    b: Boot


@dataclass(frozen=True)
class PairedVerdict:
    """The outcome of B against A at one context.

    Args:
        status: As in `CellVerdict`; `regressed` means that B is worse. Never `incomparable` or `no-baseline`.
        gates: `old` and `new` are the geometric means of A and of B; `sd` is that of a difference of a pair.
        reasons: Why, where the status is not the gates' alone.
        pairs: How many it rests on.
    """

    status: Status
    gates: tuple[Gate, ...] = ()
    reasons: tuple[str, ...] = ()
    pairs: int = 0


def order(pairs: int) -> tuple[Literal["a", "b"], ...]:
    """Return which engine boots when: a b b a a b b a …, two for each pair."""
    return tuple(engine for pair in range(pairs) for engine in (("a", "b") if pair % 2 == 0 else ("b", "a")))


def looks_within(looks: int, most_boots: int | None) -> list[int]:
    """Return the pairs at each look that a number of boots leaves, those of both arms counted together.

    Args:
        looks: How many there are at most.
        most_boots: None for as many as the looks need.
    """
    return [pairs for pairs in PAIRS_AT_LOOK[:looks] if most_boots is None or 2 * pairs <= most_boots]


def decide_pairs(
    by_context: Mapping[int, Sequence[BootPair]],
    *,
    family: int,
    policy: Policy | None = None,
    another_block: bool = True,
) -> dict[int, PairedVerdict]:
    """Judge B against A, at each context of a tier, after a whole number of blocks.

    As in `procedure.decide`, with a paired t interval, mean ± t · sd / sqrt(n). The spread is estimated from the same
    pairs that it judges, so that unlike there one wild pair widens the interval. A context with a fault is `invalid`
    and lends its pairs to no spread.

    Args:
        by_context: Pairs so far, by context length; each a number out of `PAIRS_AT_LOOK`.
        family: Declared gates: tiers x contexts x metrics.
        policy: The rules; the default ones for None. `looks` blocks are the most.
        another_block: False where none can be had.

    Raises:
        ValueError: A number of pairs at which nothing is looked at.
    """
    policy = policy or Policy()
    allowed = PAIRS_AT_LOOK[: policy.looks]
    for pairs in by_context.values():
        if len(pairs) not in allowed:
            raise ValueError(f"{len(pairs)} pairs; looks are at {', '.join(map(str, allowed))}")
    metrics = {
        context: judged(policy.metrics, [boot for pair in pairs for boot in (pair.a, pair.b)], None)
        for context, pairs in by_context.items()
    }
    verdicts: dict[int, PairedVerdict] = {}
    sound: dict[int, Sequence[BootPair]] = {}
    for context, pairs in by_context.items():
        if not metrics[context]:
            verdicts[context] = PairedVerdict("inconclusive", reasons=(nothing_judged(policy),), pairs=len(pairs))
        elif faults := _faults(pairs, metrics[context]):
            verdicts[context] = PairedVerdict("invalid", reasons=faults, pairs=len(pairs))
        else:
            sound[context] = pairs
    for context, pairs in sound.items():
        gates = []
        for metric in metrics[context]:
            # Contexts that have none of an optional metric lend nothing to its spread.
            lenders = [other for other in sound if metric in metrics[other]]
            groups = [sound[other] for other in lenders]
            gates.append(_gate(metric, groups, lenders.index(context), family, policy))
        more = another_block and len(pairs) < allowed[-1]
        verdicts[context] = PairedVerdict(*_combine(tuple(gates), more=more), pairs=len(pairs))
    return {context: verdicts[context] for context in by_context}


def judge_pairs(
    means: npt.ArrayLike, sd: npt.ArrayLike, *, df: int, look: int, family: int, policy: Policy, metric: str = ""
) -> Bounds:
    """Judge gates by the paired t interval, mean ± t · sd / sqrt(pairs), against the declared margin.

    Args:
        means: Of the differences of pairs, B less A, turned log scale, any shape.
        sd: Of such a difference, same shape.
        df: Degrees of freedom of `sd`.
        look: From 1; there are `PAIRS_AT_LOOK[look - 1]` pairs.
        family: How many gates are declared.
        policy: The rules.
        metric: Key, where it has a margin of its own.
    """
    error = np.asarray(sd, dtype=np.float64) / math.sqrt(PAIRS_AT_LOOK[look - 1])
    declared = policy.margin_of(metric)
    middle = np.asarray(means, dtype=np.float64)
    return classify(
        middle,
        t_quantile(policy.regression_level(look, family), df) * error,
        t_quantile(policy.pass_level(look), df) * error,
        np.full_like(middle, math.log1p(declared)),
        policy,
        widest=declared,
    )


def _gate(metric: Metric, groups: Sequence[Sequence[BootPair]], position: int, family: int, policy: Policy) -> Gate:
    logs = [[(metric.of(p.a.figures), metric.of(p.b.figures)) for p in pairs] for pairs in groups]
    deltas = [[b - a for a, b in pairs] for pairs in logs]
    means = [math.fsum(d) / len(d) for d in deltas]
    squares = [math.fsum((x - mean) ** 2 for x in d) for d, mean in zip(deltas, means, strict=True)]
    spread = pooled(squares, [len(d) - 1 for d in deltas])
    sd, df, count = float(spread.sd[position]), spread.df, len(deltas[position])
    look, effect = PAIRS_AT_LOOK.index(count) + 1, means[position]
    bounds = judge_pairs(effect, sd, df=df, look=look, family=family, policy=policy, metric=metric.key)
    a, b = (math.fsum(pair[arm] for pair in logs[position]) / count for arm in (0, 1))
    return Gate(
        metric,
        Outcome(int(bounds.outcome)),
        old=metric.natural(a),
        new=metric.natural(b),
        effect=effect,
        lower=float(bounds.lower),
        upper=float(bounds.upper),
        margin=float(bounds.margin),
        sd=sd,
        df=df,
    )


def _combine(gates: tuple[Gate, ...], *, more: bool) -> tuple[Status, tuple[Gate, ...], tuple[str, ...]]:
    outcomes = {gate.outcome for gate in gates}
    if Outcome.REGRESSED in outcomes:
        return "regressed", gates, ()
    if Outcome.OPEN in outcomes:
        if more:
            return "needs-boot", gates, ()
        reasons = tuple(
            f"{g.metric.label}: between {math.expm1(g.lower):+.0%} and {math.expm1(g.upper):+.0%},"
            f" margin {math.expm1(g.margin):+.0%}"
            for g in gates
            if g.outcome == Outcome.OPEN
        )
        return "inconclusive", gates, reasons
    return ("improved" if Outcome.IMPROVED in outcomes else "pass"), gates, ()


def _faults(pairs: Sequence[BootPair], metrics: Sequence[Metric]) -> tuple[str, ...]:
    return tuple(
        f"pair {number}, {name}: {line}"
        for number, pair in enumerate(pairs, start=1)
        for name, boot in (("A", pair.a), ("B", pair.b))
        for line in unusable(boot, metrics)
    )
