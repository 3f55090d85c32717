"""Whole sessions of the procedure at once: arrays of boots, judged by the very functions that `decide` calls.

Only the loop over cells and the way that gates make a cell's verdict are written anew, for arrays; a test holds them
against `procedure.decide` on random cases.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pytest_kvcache.verdict.interim import Policy, effective_days
from pytest_kvcache.verdict.interval import Bounds, Outcome, judge, pooled
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, judge_pairs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Statuses of a cell.
OPEN, PASSED, REGRESSED, IMPROVED, INCONCLUSIVE = range(5)


@dataclass(frozen=True)
class Scenario:
    """A kind of session.

    Args:
        sds: sd of a boot for each metric of a cell, log scale.
        tiers: Number of tiers that are run.
        contexts: Number of contexts of each.
        baseline_boots: K.
        family: Declared gates; None for those that are run.
        shift: By how much the first metric of the first cell is worse, log scale.
        day_sd: sd of what all boots of one session (day) have in common, drawn for each gate.
        days: Over how many sessions the baseline's boots were taken.
        days_alike: Whether a day moves all contexts of a tier alike.
        context_factors: Factors of the spread by context; () for 1.
        tails: Degrees of freedom of the boots' own t distribution, scaled to its sd; 0 for the normal.
        policy: The rules.
    """

    sds: tuple[float, ...] = (0.03, 0.03, 0.03)
    tiers: int = 2
    contexts: int = 2
    baseline_boots: int = 6
    family: int | None = None
    shift: float = 0.0
    day_sd: float = 0.0
    days: int = 1
    days_alike: bool = False
    context_factors: tuple[float, ...] = ()
    tails: int = 0
    policy: Policy = field(default_factory=Policy)

    @property
    def gates(self) -> int:
        """Declared gates."""
        return self.family or self.tiers * self.contexts * len(self.sds)


def draw(scenario: Scenario, sessions: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return boots of baselines and of runs, turned log scale, shapes (sessions, tiers, contexts, metrics, boots)."""
    s = scenario
    shape = (sessions, *_shape(s))
    sd = np.array(s.sds)[:, None] * np.array(s.context_factors or (1.0,) * s.contexts)[:, None, None]

    def boots(count: int) -> Floats:
        if s.tails:
            scale = np.sqrt((s.tails - 2) / s.tails)
            return np.asarray(rng.standard_t(s.tails, (*shape, count)) * scale * sd)
        return np.asarray(rng.standard_normal((*shape, count)) * sd)

    base, new = boots(s.baseline_boots), boots(s.policy.looks)
    if s.day_sd:
        which = (*shape[:2], 1, *shape[3:]) if s.days_alike else shape
        days = rng.standard_normal((*which, s.days)) * s.day_sd
        base = base + days[..., np.arange(s.baseline_boots) % s.days]
        new = new + rng.standard_normal((*which, 1)) * s.day_sd
    new[:, 0, 0, 0, :] += s.shift
    return base, new


def bounds(scenario: Scenario, base: Floats, new: Floats) -> Bounds:
    """Return intervals and outcomes after `new.shape[-1]` boots, shape (sessions, tiers, contexts, metrics)."""
    s = scenario
    middle = base.mean(-1, keepdims=True)
    squares = np.moveaxis(((base - middle) ** 2).sum(-1), 2, -1)  # contexts last, as `pooled` wants them
    own = base.shape[-1] - 1
    spread = pooled(squares, [own] * s.contexts)
    return judge(
        new.mean(-1) - middle[..., 0],
        np.moveaxis(spread.sd, -1, 2),
        df=spread.df,
        baseline_boots=base.shape[-1],
        new_boots=new.shape[-1],
        family=s.gates,
        policy=s.policy,
        days=effective_days(np.bincount(np.arange(base.shape[-1]) % s.days).tolist()),
    )


def usual_margin(scenario: Scenario, seed: int, sessions: int = 20_000) -> float:
    """Return the mean over sessions of the margin that the baseline of the first gate states, log scale."""
    base, new = draw(replace(scenario, tiers=1, family=scenario.gates), sessions, np.random.default_rng([seed, 0]))
    return float(bounds(replace(scenario, tiers=1, family=scenario.gates), base, new).margin[:, 0, 0, 0].mean())


def cells_after(scenario: Scenario, base: Floats, new: Floats) -> Ints:
    """Return the status of each cell after `new.shape[-1]` boots, shape (sessions, tiers, contexts)."""
    gates = bounds(scenario, base, new).outcome
    opened, wide = (gates == Outcome.OPEN).any(-1), (gates == Outcome.TOO_WIDE).any(-1)
    last = new.shape[-1] == scenario.policy.looks
    return np.select(
        [(gates == Outcome.REGRESSED).any(-1), opened, wide, (gates == Outcome.IMPROVED).any(-1)],
        [REGRESSED, INCONCLUSIVE if last else OPEN, INCONCLUSIVE, IMPROVED],
        default=PASSED,
    )


@dataclass(frozen=True)
class Ended:
    """How the cells of many sessions ended, arrays of shape (sessions, tiers, contexts).

    Args:
        status: Of the constants of this module, never OPEN.
        boots: How many boots each took.
    """

    status: Ints
    boots: Ints


def play(scenario: Scenario, sessions: int, seed: int, *, at_a_time: int = 2000) -> Ended:
    """Play sessions to their end: each cell is looked at after each boot and stops at its first final verdict."""
    statuses, counts = [], []
    for number, start in enumerate(range(0, sessions, at_a_time)):
        rng = np.random.default_rng([seed, number])
        base, new = draw(scenario, min(at_a_time, sessions - start), rng)
        status = np.zeros(base.shape[:3], dtype=np.int64)
        boots = np.zeros_like(status)
        for look in range(1, scenario.policy.looks + 1):
            going = status == OPEN
            boots += going
            status = np.where(going, cells_after(scenario, base, new[..., :look]), status)
        statuses.append(status)
        counts.append(boots)
    return Ended(np.concatenate(statuses), np.concatenate(counts))


def alarms_of_kept_baselines(scenario: Scenario, baselines: int, nights: int, seed: int) -> Floats:
    """Return the share of nights with a false alarm for each of many baselines that are kept, shape (baselines,)."""
    rng = np.random.default_rng(seed)
    rates = np.empty(baselines)
    for number in range(baselines):
        base = np.broadcast_to(draw(scenario, 1, rng)[0], (nights, *_shape(scenario), scenario.baseline_boots))
        new = draw(scenario, nights, rng)[1]
        status = np.zeros(new.shape[:3], dtype=np.int64)
        for look in range(1, scenario.policy.looks + 1):
            status = np.where(status == OPEN, cells_after(scenario, base, new[..., :look]), status)
        rates[number] = (status == REGRESSED).any((1, 2)).mean()
    return rates


def play_pairs(sd: float, sessions: int, seed: int, *, contexts: int = 2, shift: float = 0.0) -> Ended:
    """Play A/B sessions of one tier, three metrics each, to their end; `boots` counts those of both engines.

    Args:
        sd: Of the difference of a pair, log scale.
        sessions: How many.
        seed: Of the random numbers.
        contexts: Each decided on its own; all stop once all are decided.
        shift: By how much B is worse in the first metric of the first context.
    """
    policy, metrics = Policy(), 3
    rng = np.random.default_rng(seed)
    pairs = rng.standard_normal((sessions, contexts, metrics, PAIRS_AT_LOOK[-1])) * sd
    pairs[:, 0, 0, :] += shift
    status = np.zeros((sessions, contexts), dtype=np.int64)
    boots = np.zeros_like(status)
    for look, count in enumerate(PAIRS_AT_LOOK, start=1):
        going = (status == OPEN).any(-1, keepdims=True) & np.ones_like(status, dtype=bool)
        boots = np.where(going, 2 * count, boots)
        seen = pairs[..., :count]
        squares = np.moveaxis(((seen - seen.mean(-1, keepdims=True)) ** 2).sum(-1), 1, -1)
        spread = pooled(squares, [count - 1] * contexts)
        gates = judge_pairs(
            seen.mean(-1),
            np.moveaxis(spread.sd, -1, 1),
            df=spread.df,
            look=look,
            family=contexts * metrics,
            policy=policy,
        ).outcome
        after = np.select(
            [(gates == Outcome.REGRESSED).any(-1), (gates == Outcome.OPEN).any(-1)],
            [REGRESSED, INCONCLUSIVE if count == PAIRS_AT_LOOK[-1] else OPEN],
            default=PASSED,
        )
        status = np.where(status == OPEN, after, status)
    return Ended(status[:, None, :], boots[:, None, :])


def _shape(scenario: Scenario) -> tuple[int, int, int]:
    return scenario.tiers, scenario.contexts, len(scenario.sds)
