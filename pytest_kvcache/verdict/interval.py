"""t intervals on boots, and what follows from them for one gate. Works on arrays, so that it can be simulated as it is.

The unit of replication is a fresh boot, never a request: requests of one run share its queue, cache and boot, and
taking them for independent makes intervals many times too narrow (Kalibera & Jones, "Rigorous benchmarking in
reasonable time", ISMM 2013, on replication at the level that varies most; Georges et al., OOPSLA 2007, on VM
invocations).

All values are on the turned log scale of `Metric.log`: positive is worse, differences are log ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pytest_kvcache.verdict.interim import (
    Policy,
    drift_errors,
    pass_quantile,
    resolved_errors,
    standard_errors,
    t_quantile,
)

Floats = npt.NDArray[np.float64]
Real = Floats | np.float64
Ints = npt.NDArray[np.int64]


#: Degrees of freedom of a standard deviation that somebody has declared.
_DECLARED = 100_000


class Outcome(IntEnum):
    """What one gate says after a look."""

    OPEN = 0
    PASS = 1
    REGRESSED = 2
    IMPROVED = 3
    TOO_WIDE = 4


@dataclass(frozen=True)
class Spread:
    """The spread of a boot, pooled.

    Args:
        sd: Of each context on the log scale (0.03 is about 3 %).
        df: Its degrees of freedom, one number for all.
    """

    sd: Floats
    df: int


def pooled(squares: npt.ArrayLike, dfs: Sequence[int], *, fitted: int = 0) -> Spread:
    """Return the spread for each context of a tier: the pooled one, or the context's own where that is larger.

    Variances are pooled over contexts, each weighted by its degrees of freedom (the pooled variance of any textbook on
    analysis of variance): one context's six boots alone have 5 degrees of freedom, and t at 5 is wide. Pooling assumes
    that contexts spread alike, and a context that spreads more gets intervals that are too narrow: with one of two
    spreading 3 times as much, a session's false alarms triple. Testing first whether they do (Bancroft, Ann. Math.
    Stat. 1944, on preliminary tests) finds too little with six boots; the larger of the two costs 7 % of the margin and
    halves those alarms (`docs/verdicts.md` has the numbers).

    Args:
        squares: Sums of squared deviations from each context's own mean, shape (..., contexts).
        dfs: Degrees of freedom of each context, boots - 1.
        fitted: How many slopes were fitted to all contexts together; each takes one.

    Returns:
        `sd` has the shape of `squares`.

    Raises:
        ValueError: There is not one degree of freedom.
    """
    own, own_df = np.asarray(squares, dtype=np.float64), np.asarray(dfs, dtype=np.int64)
    df = int(own_df.sum()) - fitted
    if df < 1 or own_df.min() < 0:
        raise ValueError("a spread needs a baseline with two boots, and one more for a slope")
    variance = np.maximum(own.sum(-1, keepdims=True) / df, own / np.maximum(own_df - fitted, 1))
    return Spread(np.sqrt(variance), df)


@dataclass(frozen=True)
class Bounds:
    """The interval of a gate, and what it says. All arrays have the shape of the differences.

    Args:
        lower: The change is larger than this, at the level of `regressed`.
        upper: The change is smaller than this, at the level of `pass`.
        mirror: The change is smaller than this, at the level of `regressed`: the bound of `improved`.
        margin: What `upper` must stay below to pass, log scale.
        outcome: Of `Outcome`.
    """

    lower: Floats
    upper: Floats
    mirror: Floats
    margin: Floats
    outcome: Ints


def judge(
    differences: npt.ArrayLike,
    sd: npt.ArrayLike,
    *,
    df: int,
    baseline_boots: int,
    new_boots: int,
    family: int,
    policy: Policy,
    metric: str = "",
    days: float = 1.0,
    leverage: npt.ArrayLike = 0.0,
    usual_leverage: float = 0.0,
) -> Bounds:
    """Judge gates by the pooled two-sample t interval, difference ± t · sd · sqrt(1/K + 1/m + leverage).

    The spread is that of the baseline alone: it is known before the first new boot, so are margin and bounds, and no
    new boot, however odd, can widen an interval and so undo a regression.

    - `regressed`: the lower bound is above 0 and the difference is at least the least effect. A difference from zero
      that is certain but small is nobody's business.
    - `improved`: the mirror of it.
    - `pass`: none of them, and the upper bound is below the margin: one half of Schuirmann's two one-sided tests (J.
      Pharmacokin. Biopharm. 1987), a non-inferiority test. A mere absence of evidence does not pass.

    Args:
        differences: Mean of the new boots less mean of the baseline's, turned log scale, any shape.
        sd: Of a boot, same shape.
        df: Degrees of freedom of `sd`.
        baseline_boots: K.
        new_boots: m, the number of the look.
        family: How many gates are declared.
        policy: The rules.
        metric: Key, where it has a margin or a `day_sd` of its own.
        days: Over how many sessions the baseline's boots were taken (`effective_days`), for `policy.day_sd_of`.
        leverage: What an adjustment adds to the variance of the difference (`spread.Level.leverage`).
        usual_leverage: What it usually adds: the margin is what the baseline can resolve then, and a machine that has
            gone further away makes intervals wider and no margin.
    """
    difference = np.asarray(differences, dtype=np.float64)
    spread = np.broadcast_to(np.asarray(sd, dtype=np.float64), difference.shape)

    now, last = (
        standard_errors(baseline_boots, boots, more)
        for boots, more in ((new_boots, leverage), (policy.looks, usual_leverage))
    )
    level = policy.regression_level(new_boots, family)

    def half_widths(df: int, now: Floats, last: Floats) -> tuple[Floats, Floats, Floats]:
        # Of `regressed`, of `pass`, and what is resolved, for a spread of one that is known so well.
        errors = resolved_errors(policy, df=df, family=family)
        told = pass_quantile(policy, new_boots, df=df, noncentrality=errors * (last / now))
        return np.asarray(t_quantile(level, df) * now), np.asarray(told * now), np.asarray(errors * last)

    # Variances of random effects add. What days differ by is declared and not estimated from few boots, so that it has
    # the quantiles of a normal distribution; squares of half-widths are added, which is close to what Cochran
    # (Biometrics 1964) does for variances of unlike degrees of freedom.
    day_sd, one = policy.day_sd_of(metric), np.asarray(1.0)
    drift = [day_sd * drift_errors(baseline_boots, boots, days) for boots in (new_boots, new_boots, policy.looks)]
    strict, ample, resolved = (
        np.hypot(spread * of_boots, drifted * of_days)
        for of_boots, drifted, of_days in zip(
            half_widths(df, now, last), drift, half_widths(_DECLARED, one, one), strict=True
        )
    )
    margin = np.maximum(np.log1p(policy.margin_of(metric)), resolved)
    return classify(difference, strict, ample, margin, policy, widest=policy.widest_margin_of(metric))


def classify(difference: Real, strict: Real, ample: Real, margin: Real, policy: Policy, *, widest: float) -> Bounds:
    """Return bounds and outcomes for half-widths of intervals: the rules of `judge`, whatever the interval came from.

    Args:
        difference: Log ratios, positive is worse.
        strict: Half-width at the level of `regressed`.
        ample: Half-width at the level of `pass`.
        margin: What the upper bound must stay below.
        policy: The rules.
        widest: A wider margin than this share cannot pass.
    """
    least = np.log1p(policy.least_effect)
    lower, upper, mirror = map(np.asarray, (difference - strict, difference + ample, difference + strict))
    outcome = np.select(
        [
            (lower > 0) & (difference >= least),
            (mirror < 0) & (difference <= -least),
            margin > np.log1p(widest) * (1 + 1e-12),
            upper < margin,
        ],
        [Outcome.REGRESSED, Outcome.IMPROVED, Outcome.TOO_WIDE, Outcome.PASS],
        default=Outcome.OPEN,
    )
    return Bounds(lower, upper, mirror, np.asarray(margin), np.asarray(outcome, dtype=np.int64))
