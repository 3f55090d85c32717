"""A baseline in the making: what a session's boots are beside those that it already had. This is never a verdict.

A baseline that has too few boots for a gate grows by those of each session. Until it gates, a gross change must not
hide in it: every metric is told old → new, with how far the boots spread, and with the words that this is no gate yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from pytest_kvcache.verdict import spread
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome, judge
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.procedure import share

#: From this share on a margin is told in words: its digits say nothing.
_TENFOLD = 9.0
#: How sure a forecast is.
_SURE = 0.9
#: What to do where boots of a baseline spread so far that it is no gate.
SPREADS_TOO_FAR = (
    "see which boot is off (pytest-kvcache baselines show), take the baseline anew on a quieter machine "
    "(--update-baselines), or take more boots (rules.baseline_boots)"
)


@dataclass(frozen=True)
class Change:
    """One metric of the boots so far and of the session's.

    Args:
        metric: Which.
        old: Geometric mean of the boots so far, natural unit; None where one of them lacks a positive figure.
        new: The same of the session's boots.
        sd: Of the boots so far, log scale; None for fewer than two of them.
        wide: Why this metric could not pass if boots went on to spread so, and what to do; "" where it could, or where
            too little is known.
    """

    metric: Metric
    old: float | None
    new: float | None
    sd: float | None = None
    wide: str = ""

    @property
    def effect(self) -> float | None:
        """By how much it is worse, as a log ratio; None where a side is not known."""
        if self.old is None or self.new is None:
            return None
        return self.metric.log(self.new) - self.metric.log(self.old)

    @property
    def ratio(self) -> float | None:
        """New over old, natural units; None where a side is not known."""
        return None if self.old is None or self.new is None else self.new / self.old

    @property
    def text(self) -> str:
        """Old → new, by how much worse, and the spread so far."""
        parts = [f"{self.metric.label}: {_number(self.old)} -> {_number(self.new)}"]
        if self.effect is not None:
            parts.append(f"worse by {share(self.effect):+z.1%}")
        if self.sd is not None:
            parts.append(f"boots so far spread by {share(self.sd):.1%} (sd)")
        return ", ".join(parts)


@dataclass(frozen=True)
class InTheMaking:
    """What a session that adds boots to a baseline says of it.

    Args:
        changes: Of every judged metric, in the order of the profile.
        boots: How many the baseline has with those of the session.
        needed: With how many it gates.
        state: That it is no gate yet, with its boots.
    """

    changes: tuple[Change, ...]
    boots: int
    needed: int
    state: str

    def change(self, metric: Metric | None = None) -> Change:
        """Return the change of a metric; where none is named, that of the one that is worse by most."""
        if metric is not None:
            return next(change for change in self.changes if change.metric == metric)
        return max(self.changes, key=lambda c: -math.inf if c.effect is None else c.effect)

    def line(self, metric: Metric | None = None) -> str:
        """Return what is known of a metric in a line that stands alone; of the one that is worse by most for None."""
        return f"{self.change(metric).text}: {self.state}"

    def lines(self, metric: Metric | None = None) -> list[str]:
        """Return a line for a metric, or for each where none is named, and one for each that spreads too widely."""
        shown = self.changes if metric is None else (self.change(metric),)
        return [*(self.line(change.metric) for change in shown), *(change.wide for change in shown if change.wide)]


def compare(
    old: StoredCell,
    new: StoredCell,
    *,
    siblings: Sequence[StoredCell] = (),
    family: int,
    policy: Policy,
    baseline_boots: int,
) -> InTheMaking:
    """Return what a session's boots are beside those that their baseline had.

    Args:
        old: The baseline before the session.
        new: The baseline with the session's boots behind those of `old`.
        siblings: Cells whose boots are pooled with it (`procedure.tier_of`), as they are after the session.
        family: Declared gates.
        policy: The rules.
        baseline_boots: How many boots the profile records.
    """
    needed, state = progress(len(new.boots), policy=policy, baseline_boots=baseline_boots)
    before = [boot.figures for boot in old.boots]
    added = [boot.figures for boot in new.boots[len(old.boots) :]]
    wide = too_wide((new, *siblings), needed=needed, family=family, policy=policy)
    return InTheMaking(changes(policy.metrics, before, added, wide), len(new.boots), needed, state)


def progress(boots: int, *, policy: Policy, baseline_boots: int) -> tuple[int, str]:
    """Return with how many boots a baseline gates, and the words that it is no gate in the session that records it.

    Args:
        boots: How many it has with those of the session.
        policy: The rules.
        baseline_boots: How many boots the profile records: a session that is to record compares with nothing.
    """
    needed = max(policy.least_boots, baseline_boots)
    count = f"no gate yet: {boots} of {needed} boots"
    if boots >= needed:
        return needed, f"{count}, the next session is gated"
    if boots >= baseline_boots:
        return needed, f"{count}, and rules.baseline_boots = {baseline_boots} records no more"
    return needed, count


def changes(
    metrics: Sequence[Metric],
    old: Sequence[Mapping[str, float]],
    new: Sequence[Mapping[str, float]],
    wide: Mapping[str, str] | None = None,
) -> tuple[Change, ...]:
    """Return old → new of every metric.

    Args:
        metrics: What is judged.
        old: Figures of each boot so far, natural units.
        new: Those of the session's boots.
        wide: By metric key, what `too_wide` says.
    """
    found = []
    for metric in metrics:
        before, after = _logs(metric, old), _logs(metric, new)
        sd = float(np.std(before, ddof=1)) if len(before) > 1 else None
        found.append(
            Change(metric, _natural(metric, before), _natural(metric, after), sd, (wide or {}).get(metric.key, ""))
        )
    return tuple(found)


def too_wide(tier: Sequence[StoredCell], *, needed: int, family: int, policy: Policy) -> dict[str, str]:
    """Return, by metric key, why it could not pass even with all boots if these went on to spread as they do.

    It is a forecast, and two boots know their spread badly: taken at their word they would often call a machine noisy
    that is not. So the spread of the whole baseline is taken for the least that these boots leave open, the lower end
    of a one-sided interval of 90 %; and every boot that is still to come for one of a session of its own.

    Args:
        tier: The cell, then those it is pooled with.
        needed: With how many boots a cell gates.
        family: Declared gates.
        policy: The rules.

    Returns:
        Nothing of a metric that could pass, or of which there is no degree of freedom yet.
    """
    lines = {}
    for metric in policy.metrics:
        if spread.degrees(tier, metric, adjust_for=policy.adjust_for) < 1:
            continue
        own = spread.having(tier, metric)
        counts = [max(len(cell.boots), needed) for cell in own]
        df = sum(counts) - len(counts)
        adjusted = bool(spread.usable(own, policy.adjust_for))
        known = spread.level(tier, metric, adjust_for=policy.adjust_for)
        least_sd = known.sd * math.sqrt(known.df / float(special.chdtri(known.df, 1 - _SURE)))
        bounds = judge(
            0.0,
            least_sd,
            df=df - adjusted,
            baseline_boots=counts[0],
            new_boots=1,
            family=family,
            policy=policy,
            metric=metric.key,
            days=tier[0].days(more=counts[0] - len(tier[0].boots)),
            usual_leverage=spread.usual_leverage(counts[0], df) if adjusted else 0.0,
        )
        if int(bounds.outcome) == Outcome.TOO_WIDE:
            told = share(min(float(bounds.margin), 100.0))
            least = f"a change of {told:+.0%}" if told < _TENFOLD else "a tenfold change or more"
            lines[metric.key] = (
                f"{metric.label}: with this session's, boots spread by {share(known.sd):.1%}, {share(least_sd):.1%} at "
                f"the least: even so {counts[0]} of them tell only {least}, and at most "
                f"{policy.widest_margin_of(metric.key):+.0%} may pass: "
                f"{SPREADS_TOO_FAR}"
            )
    return lines


def _logs(metric: Metric, boots: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the figures on the turned log scale; nothing where a boot lacks a positive one."""
    return [metric.of(boot) for boot in boots] if all(metric.measured(boot) for boot in boots) else []


def _natural(metric: Metric, logs: Sequence[float]) -> float | None:
    if not logs:
        return None
    return metric.natural(spread.mean(logs))


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
