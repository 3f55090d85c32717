"""t intervals on boots, and what follows from them for one gate. Works on arrays, so that it can be simulated as it is.

The unit of replication is a fresh boot, never a request: requests of one run share its queue, cache and boot, and
taking them for independent makes intervals many times too narrow (Kalibera & Jones, "Rigorous benchmarking in
reasonable time", ISMM 2013, on replication at the level that varies most; Georges et al., OOPSLA 2007, on VM
invocations).

All values are on the turned log scale of `Metric.log`: positive is worse, differences are log ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_kvcache.verdict.looks import Policy, pass_quantile, resolved_errors, standard_errors, t_quantile

Floats = npt.NDArray[np.float64]
Real = Floats | np.float64
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: A context whose boots spread more than those of the tier's others at this level of the F test stands alone.
_UNLIKE_LEVEL = 0.01


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
        sd: On the log scale (0.03 is about 3 %), of any shape.
        df: Its degrees of freedom, of the same shape.
        alone: Where the cell's own boots spread too much to be pooled with the others.
    """

    sd: Floats
    df: Ints
    alone: Bools


def pooled(squares: npt.ArrayLike, dfs: npt.ArrayLike) -> Spread:
    """Return the spread for each context of a tier.

    Variances are pooled over contexts, each weighted by its degrees of freedom (the pooled variance of any textbook on
    analysis of variance): one context's six boots alone have 5 degrees of freedom, and t at 5 is wide. Pooling assumes
    that the contexts spread alike on the log scale. One that spreads more than the others together (F test, level 1 %)
    keeps its own spread and degrees of freedom, since pooling would make its intervals too narrow; testing first is the
    "sometimes pool" procedure (Bancroft, Ann. Math. Stat. 1944). One that spreads less is pooled: its intervals are
    then too wide, which errs towards more boots and never towards a false alarm.

    Args:
        squares: Sums of squared deviations from each context's own mean, shape (..., contexts).
        dfs: Degrees of freedom of each, boots - 1, broadcastable to that shape.

    Returns:
        Arrays of the shape of `squares`.

    Raises:
        ValueError: There is not one degree of freedom.
    """
    own = np.asarray(squares, dtype=np.float64)
    own_df = np.broadcast_to(np.asarray(dfs, dtype=np.int64), own.shape)
    all_squares, all_df = own.sum(-1, keepdims=True), own_df.sum(-1, keepdims=True)
    if own.size == 0 or np.any(all_df < 1) or np.any(own_df < 0):
        raise ValueError("a spread needs a baseline with two boots")
    rest, rest_df = all_squares - own, all_df - own_df
    testable = (rest_df > 0) & (own_df > 0) & (rest > 0)
    ratio = np.divide(own * rest_df, rest * own_df, out=np.zeros_like(own), where=testable)
    alone = testable & (special.fdtrc(np.maximum(own_df, 1), np.maximum(rest_df, 1), ratio) < _UNLIKE_LEVEL)
    df = np.where(alone, own_df, all_df)
    sd = np.sqrt(np.where(alone, own, np.broadcast_to(all_squares, own.shape)) / df)
    return Spread(sd, df, alone)


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
    days: int = 1,
) -> Bounds:
    """Judge gates by the pooled two-sample t interval, difference ± t · sd · sqrt(1/K + 1/m).

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
        metric: Key, where it has a margin of its own.
        days: Over how many sessions the baseline's boots were taken; used with `policy.day_sd`.
    """
    difference = np.asarray(differences, dtype=np.float64)
    spread = np.broadcast_to(np.asarray(sd, dtype=np.float64), difference.shape)

    def standard_error(boots: int) -> Floats:
        # The new boots are of one day, the baseline's of `days`: variances of random effects add (Searle, "Variance
        # Components", 1992).
        drift = policy.day_sd * standard_errors(days, 1)
        return np.asarray(np.hypot(spread * standard_errors(baseline_boots, boots), drift))

    error, last = standard_error(new_boots), standard_error(policy.looks)
    resolved = resolved_errors(policy, df=df, family=family) * last
    strict = t_quantile(policy.regression_level(new_boots, family), df) * error
    ratio = standard_errors(baseline_boots, policy.looks) / standard_errors(baseline_boots, new_boots)
    noncentrality = resolved_errors(policy, df=df, family=family) * ratio
    ample = pass_quantile(policy, new_boots, df=df, noncentrality=noncentrality) * error
    margin = np.maximum(np.log1p(policy.margin_of(metric)), resolved)
    return classify(
        difference, strict, ample, margin, policy, widest=max(policy.widest_margin, policy.margin_of(metric))
    )


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
