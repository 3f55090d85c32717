"""Gain gates: what a tier brings over another one in the same session, without a baseline (pure).

The two tiers are booted in turn, A B B A, and each pair gives one log ratio, as in an A/B (`paired.py`): what the hour
of the machine does to both of them is not in it. The gate asks for a ratio at least as good as a declared one, such as
TTFT at most 0.6 times that of the other tier. It passes where the upper end of the paired t interval is on the good
side of that ratio, and has regressed where the lower end is on the bad side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.interim import Policy, t_quantile
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, BootPair
from pytest_kvcache.verdict.spread import level, mean


@dataclass(frozen=True)
class Gain:
    """One gate: a tier's figure over that of another tier.

    Args:
        tier: Name of the tier that has to bring something.
        over: Name of the tier that it is held against.
        metric: Which figure.
        bound: The ratio tier / over that it must reach: at most this for times, at least this for throughputs. NaN
            where the baselines of the two tiers say it.
    """

    tier: str
    over: str
    metric: Metric
    bound: float

    @property
    def short(self) -> str:
        """Its name in test ids."""
        return f"gain-{self.metric.short}-over-{self.over}"

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.metric.label} of {self.tier} over {self.over}"

    @property
    def relation(self) -> str:
        """`at least` or `at most`."""
        return "at least" if self.metric.higher_is_better else "at most"

    @property
    def threshold(self) -> float:
        """The bound on the turned log scale, where more is worse."""
        return self.metric.log(self.bound)

    def ratio(self, effect: float) -> float:
        """Return the ratio tier / over of a difference on the turned log scale."""
        return math.exp(-effect if self.metric.higher_is_better else effect)


@dataclass(frozen=True)
class KnownSpread:
    """What is known of the spread of a pair's log ratio before it is measured.

    Args:
        sd: Standard deviation on the log scale. That of boots further from each other than neighbours are is an upper
            bound.
        df: Degrees of freedom of `sd`; 0 where nothing is known.
    """

    sd: float
    df: int


NOTHING_KNOWN = KnownSpread(0.0, 0)


def known_spread(
    tier: Sequence[StoredCell], over: Sequence[StoredCell], metric: Metric, *, least_boots: int
) -> KnownSpread:
    """Return what two tiers' baselines say of the spread of a boot of one over a boot of the other.

    Sessions that booted each of them once are pairs too, of boots some minutes apart: what an hour does to both is not
    in their ratio. Where fewer than `least_boots` have, boots are taken to share no hour, and their spreads add up.

    Args:
        tier: Baselines of the tier, a cell a context; any that lacks the metric in a boot counts for nothing.
        over: Those of the other one, in any order.
        metric: Which figure.
        least_boots: So many sessions of a context have booted both, or none counts as a pair.
    """
    cells = [[c for c in each if len(c.boots) > 1 and not c.unmeasured([metric])] for each in (tier, over)]
    if not all(cells):
        return NOTHING_KNOWN
    others = {cell.cell.context_tokens: cell for cell in cells[1]}
    found = [_shared(c, others[c.cell.context_tokens], metric) for c in cells[0] if c.cell.context_tokens in others]
    if found := [ratios for ratios in found if len(ratios) >= least_boots]:
        return spread_of(found)
    levels = [level(each, metric) for each in cells]
    # The fewer degrees of freedom are those that the sum certainly has.
    return KnownSpread(math.hypot(*(each.sd for each in levels)), min(each.df for each in levels))


def spread_of(by_context: Sequence[Sequence[float]]) -> KnownSpread:
    """Return the spread of log ratios about the mean of their context.

    Args:
        by_context: Of pairs, at least two of one context.
    """
    squares = [math.fsum((x - mean(ratios)) ** 2 for x in ratios) for ratios in by_context]
    df = sum(len(ratios) - 1 for ratios in by_context)
    return KnownSpread(math.sqrt(math.fsum(squares) / df), df)


def _shared(tier: StoredCell, over: StoredCell, metric: Metric) -> list[float]:
    """Return the log ratio in each session that booted both cells once."""
    logs: list[dict[str, list[float]]] = [{}, {}]
    for cell, by_session in zip((tier, over), logs, strict=True):
        for boot in cell.boots:
            by_session.setdefault(boot.run_id, []).append(metric.of(boot.figures))
    both = [(logs[0][run], logs[1][run]) for run in logs[0] if run in logs[1]]
    return [a[0] - b[0] for a, b in both if len(a) == len(b) == 1]


@dataclass(frozen=True)
class GainVerdict:
    """What a gain gate came to at one context.

    Args:
        status: `needs-boot` where more pairs are wanted; `invalid` where a boot has faults.
        ratio: Geometric mean of tier / over; NaN where nothing was compared.
        interval: The ratio is between these; the better end first is not promised, they are ordered by size.
        pairs: How many it rests on.
        reasons: Why, where it is invalid.
    """

    status: Literal["pass", "regressed", "inconclusive", "needs-boot", "invalid"]
    ratio: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    pairs: int = 0
    reasons: tuple[str, ...] = ()


def decide_gain(
    gain: Gain,
    by_context: Mapping[int, Sequence[BootPair]],
    *,
    family: int,
    policy: Policy,
    another_block: bool = True,
    known: KnownSpread = NOTHING_KNOWN,
) -> dict[int, GainVerdict]:
    """Judge one gain gate at each context after a whole number of blocks A B B A.

    The spread of a pair's log ratio is pooled over the contexts and with what is known of it, or the context's own
    where that is larger. Two pairs alone have one degree of freedom, with which hardly anything can be told.

    Args:
        gain: Which gate.
        by_context: Pairs so far, by context length: `a` of the tier `gain.over`, `b` of `gain.tier`; each a number out
            of `PAIRS_AT_LOOK`.
        family: Declared gain gates, contexts counted: the budget of false `regressed` is divided by it.
        policy: The rules.
        another_block: False where no more boots can be had.
        known: What the baselines of both tiers say of the spread of such a log ratio, before anything was measured.

    Raises:
        ValueError: A number of pairs at which nothing is decided.
    """
    allowed = PAIRS_AT_LOOK[: policy.looks]
    verdicts: dict[int, GainVerdict] = {}
    sound: dict[int, list[float]] = {}
    for context, pairs in by_context.items():
        if len(pairs) not in allowed:
            raise ValueError(f"{len(pairs)} pairs; decisions are at {', '.join(map(str, allowed))}")
        if faults := _faults(gain, pairs):
            verdicts[context] = GainVerdict("invalid", pairs=len(pairs), reasons=faults)
        else:
            sound[context] = [
                gain.metric.log(pair.b.figures[gain.metric.key]) - gain.metric.log(pair.a.figures[gain.metric.key])
                for pair in pairs
            ]
    if not sound:
        return verdicts
    means = {context: math.fsum(d) / len(d) for context, d in sound.items()}
    squares = [math.fsum((x - means[context]) ** 2 for x in d) for context, d in sound.items()]
    own_df = sum(len(d) - 1 for d in sound.values())
    df = own_df + known.df
    together = (math.fsum(squares) + known.sd**2 * known.df) / df
    spreads = [max(together, s / (len(d) - 1)) ** 0.5 for s, d in zip(squares, sound.values(), strict=True)]
    for position, (context, differences) in enumerate(sound.items()):
        count, effect = len(differences), means[context]
        error = spreads[position] / math.sqrt(count)
        number = PAIRS_AT_LOOK.index(count) + 1
        lower = effect - float(t_quantile(policy.regression_level(number, family), df)) * error
        upper = effect + float(t_quantile(policy.pass_level(number), df)) * error
        more = another_block and count < allowed[-1]
        status: Literal["pass", "regressed", "inconclusive", "needs-boot"]
        if lower > gain.threshold:
            status = "regressed"
        elif upper <= gain.threshold:
            status = "pass"
        else:
            status = "needs-boot" if more else "inconclusive"
        low, high = sorted((gain.ratio(lower), gain.ratio(upper)))
        verdicts[context] = GainVerdict(status, gain.ratio(effect), (low, high), count)
    return {context: verdicts[context] for context in by_context}


def _faults(gain: Gain, pairs: Sequence[BootPair]) -> tuple[str, ...]:
    lines = []
    for number, pair in enumerate(pairs, start=1):
        for name, boot in ((gain.over, pair.a), (gain.tier, pair.b)):
            lines += [f"pair {number}, {name}: {fault}" for fault in (*boot.faults, *boot.foreign)]
            if not 0 < boot.figures.get(gain.metric.key, math.nan) < math.inf:
                lines.append(f"pair {number}, {name}: {gain.metric.label} could not be measured")
    return tuple(lines)
