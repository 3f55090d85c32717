"""How much error each look may spend, and what a baseline can resolve with it.

A cell is looked at after each boot, at most three times. Every look is a chance to be wrong, so the error is split over
the looks beforehand: the sum of the parts bounds the error of the whole whatever the looks have in common (Bonferroni;
spending it unevenly is the alpha spending of group sequential tests: Lan & DeMets, Biometrika 1983; Jennison &
Turnbull, "Group Sequential Methods", 2000). A design with fewer looks spends the same sum: looks never add error.

Two errors, two families:

- A false `regressed` anywhere fails the session. So its error is divided by the number of *declared* gates (tiers x
  contexts x metrics), whatever a session selects (Bonferroni again).
- A false `pass` is a statement about one gate, and a cell passes only if all its gates do: an intersection-union test,
  whose level is that of each part without any division (Berger, Technometrics 1982). Dividing it too would make it
  impossible to pass at the first look, and buy nothing.

The margin is `Policy.margin` or what the baseline can resolve, whichever is larger: the effect that regresses with
`Policy.power` by the last look. So a gate never claims more than its baseline can tell, and more boots in the baseline
make it sharper.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric

Floats = npt.NDArray[np.float64]

#: Parts of the error for each look, by number of looks; each row sums to 1. Late looks get most of the false-alarm
#: budget: early ones need it for gross changes only, which are seen anyway. The other is nearly even: most cells have
#: not changed, and an early pass is what saves boots.
REGRESSION_PARTS = {1: (1.0,), 2: (0.25, 0.75), 3: (0.10, 0.20, 0.70)}
PASS_PARTS = {1: (1.0,), 2: (0.4, 0.6), 3: (0.30, 0.30, 0.40)}

_WIDEST_EFFECT = 1e4


@dataclass(frozen=True)
class Policy:
    """The rules of a profile. Shares are of the better value: 0.10 is 10 % more time, or throughput down to 1/1.10.

    Args:
        margin: A change below this may pass; widened where the baseline cannot resolve it.
        margins: By metric key, another `margin` for that metric.
        widest_margin: Where the margin would have to be wider than this, the gate cannot pass.
        least_effect: A change smaller than this is never `regressed` or `improved`, however sure it is.
        least_boots: A baseline with fewer boots cannot pass a gate.
        least_df: With fewer degrees of freedom no gate says anything: tails of t that thin are not to be trusted.
        looks: Most boots of one decision, 1 to 3.
        regression_error: Probability of any false `regressed` in a session where nothing changed.
        pass_error: Probability that a gate passes whose true change is its margin.
        power: Probability that a change as large as the resolved effect is `regressed`.
        day_sd: sd, on the log scale, of what all boots of one session have in common: drift from day to day. It cannot
            be seen in one session's boots, and no number of them averages it out; measure it with sessions in which
            nothing changed. Zero trusts the canary to have seen it all.
        day_sds: By metric key, another `day_sd` for that metric.
        canary_tolerance: By how much the machine may be faster or slower than for the baseline.
        adjust_for: Name of a canary reading; what follows the machine's speed by it is no change (`spread`). Empty for
            none.
        metrics: What is judged, in the order of tables.
    """

    margin: float = 0.10
    margins: dict[str, float] = field(default_factory=dict)
    widest_margin: float = 0.50
    least_effect: float = 0.05
    least_boots: int = 6
    least_df: int = 4
    looks: int = 3
    regression_error: float = 0.04
    pass_error: float = 0.05
    power: float = 0.90
    day_sd: float = 0.0
    day_sds: dict[str, float] = field(default_factory=dict)
    canary_tolerance: float = 0.10
    adjust_for: str = ""
    metrics: tuple[Metric, ...] = DEFAULT_METRICS

    def __post_init__(self) -> None:
        """Refuse rules that contradict each other.

        Raises:
            ValueError: A number is outside of its range.
        """
        if self.looks not in REGRESSION_PARTS:
            raise ValueError(f"looks must be 1, 2 or 3, not {self.looks}")
        if not 0 < self.regression_error < 1 or not 0 < self.pass_error < 0.5 or not 0 < self.power < 1:
            raise ValueError("errors and power are probabilities; a pass error of a half or more decides nothing")
        if not 0 < self.least_effect <= min([self.margin, *self.margins.values()]):
            raise ValueError("the least effect must be positive and no larger than a margin")
        if not all(0 <= sd < math.inf for sd in (self.day_sd, *self.day_sds.values())):
            raise ValueError("day_sd is a standard deviation")
        if not self.metrics:
            raise ValueError("nothing to judge")
        if self.least_boots < 2 or self.least_df < 1:
            raise ValueError("a spread needs two boots and a degree of freedom")

    def margin_of(self, metric: str) -> float:
        """Return the declared margin of a metric, by key, as a share."""
        return self.margins.get(metric, self.margin)

    def widest_margin_of(self, metric: str) -> float:
        """Return the widest margin with which a metric, by key, can pass, as a share: the declared one always can."""
        return max(self.widest_margin, self.margin_of(metric))

    def day_sd_of(self, metric: str) -> float:
        """Return the sd, on the log scale, of what all boots of one session have in common in a metric, by key."""
        return self.day_sds.get(metric, self.day_sd)

    def regression_level(self, look: int, family: int) -> float:
        """Return the one-sided level of `regressed` (and of its mirror, `improved`) of one gate at a look (from 1).

        Args:
            look: Number of new boots, from 1.
            family: How many gates are declared.

        Raises:
            ValueError: There is no such look, or no gate.
        """
        self._check(look, family)
        return self.regression_error * REGRESSION_PARTS[self.looks][look - 1] / family

    def pass_level(self, look: int) -> float:
        """Return the one-sided level of `pass` at a look (from 1); raises ValueError where there is no such look."""
        self._check(look, 1)
        return self.pass_error * PASS_PARTS[self.looks][look - 1]

    def _check(self, look: int, family: int) -> None:
        if not 1 <= look <= self.looks:
            raise ValueError(f"look {look} of {self.looks}")
        if family < 1:
            raise ValueError(f"a family of {family} gates")


def standard_errors(baseline_boots: int, new_boots: int, leverage: npt.ArrayLike = 0.0) -> Floats:
    """Return sqrt(1/K + 1/m + leverage): the standard error of a difference of two means, in sd of a boot.

    That of the two-sample t, and of the analysis of covariance where there is a leverage; of its shape.
    """
    return np.asarray(np.sqrt(1 / baseline_boots + 1 / new_boots + np.asarray(leverage, dtype=np.float64)))


def effective_days(boots: Collection[int]) -> float:
    """Return over how many sessions boots were taken, from the boots of each: sum² / sum of squares.

    It is the number of equally large sessions whose mean is known as well (Kish, "Survey Sampling", 1965).
    """
    return sum(boots) ** 2 / sum(count**2 for count in boots)


def drift_errors(baseline_boots: int, new_boots: int, days: float) -> float:
    """Return what drift adds to the standard error of a difference of two means, in sd of a day: root of its variance.

    The new boots are of one day, the baseline's of `days`, so that days move their difference by the root of
    1 + 1/days. But boots of several days spread by these days too, and `standard_errors` times that spread has counted
    them there: boots that are each of a day of its own have the whole variance of a day in their own, boots of one day
    nothing of it (expected mean squares of a random effect: Searle, "Variance Components", 1992).

    Args:
        baseline_boots: K.
        new_boots: m.
        days: Of the baseline (`effective_days`), from 1 to K.
    """
    within = (1 - 1 / days) / (1 - 1 / baseline_boots) if baseline_boots > 1 else 0.0
    counted = within * (1 / baseline_boots + 1 / new_boots)
    return math.sqrt(max(0.0, 1 + 1 / days - counted))


@lru_cache(maxsize=4096)
def t_quantile(level: float, df: int) -> float:
    """Return the upper quantile of Student's t: P(T > quantile) = level."""
    return float(-special.stdtrit(df, level))


def pass_quantile(policy: Policy, look: int, *, df: int, noncentrality: npt.ArrayLike) -> Floats:
    """Return how many standard errors below the margin an effect must lie to pass at a look.

    Against a margin that is a fixed number this is the quantile of t. Where the margin is what the baseline resolves,
    it is itself a multiple of the estimated spread: too large exactly when that is, so that a plain t interval passes
    too often (7 % instead of 5 % with 5 degrees of freedom). The exact test against a margin in units of the spread
    uses the noncentral t (Wellek, "Testing Statistical Hypotheses of Equivalence and Noninferiority", 2010). Both must
    hold, so the larger quantile is returned.

    Args:
        policy: The rules.
        look: Number of new boots, from 1.
        df: Degrees of freedom of the spread.
        noncentrality: The resolved effect over its standard error at this look; any shape, which the result has.
    """
    level, effect = policy.pass_level(look), np.asarray(noncentrality, dtype=np.float64)
    return np.maximum(t_quantile(level, df), effect - special.nctdtrit(df, effect, level))


def resolution(policy: Policy, *, baseline_boots: int, df: int, family: int, usual_leverage: float = 0.0) -> float:
    """Return the effect, in sd of a boot on the log scale, that regresses with the policy's power by the last look.

    The power of a t test is a tail of the noncentral t distribution (Cohen, "Statistical Power Analysis", 1988). What
    may pass at an earlier look can no longer regress; that much, `pass_level` each, is added to the power asked for, so
    that the promise holds for the whole procedure.

    Args:
        policy: The rules.
        baseline_boots: K of the cell.
        df: Degrees of freedom of the spread.
        family: How many gates are declared.
        usual_leverage: What an adjustment usually adds to the variance of the difference (`spread.Level`).

    Raises:
        ValueError: A count is not positive.
    """
    if baseline_boots < 1:
        raise ValueError(f"{baseline_boots} boots")
    error = float(standard_errors(baseline_boots, policy.looks, usual_leverage))
    return error * resolved_errors(policy, df=df, family=family)


def resolved_errors(policy: Policy, *, df: int, family: int) -> float:
    """Return the effect of `resolution` in standard errors of the last look.

    Raises:
        ValueError: A count is not positive.
    """
    if df < 1:
        raise ValueError(f"{df} degrees of freedom")
    level = policy.regression_level(policy.looks, family)
    spent = sum(policy.pass_level(look) for look in range(1, policy.looks))
    return _noncentrality(level, df, min(policy.power + spent, 0.9999))


@lru_cache(maxsize=4096)
def _noncentrality(level: float, df: int, power: float) -> float:
    bound = t_quantile(level, df)

    def excess(noncentrality: float) -> float:
        return 1 - power - float(special.nctdtr(df, noncentrality, bound))

    top = 2 * bound + 10
    while excess(top) < 0 and top < _WIDEST_EFFECT:
        top *= 2
    from scipy import optimize  # noqa: PLC0415 - half a second, and no session needs it before its first decision

    return float(optimize.brentq(excess, 0.0, top, xtol=1e-9)) if excess(top) >= 0 else math.inf
