"""Error spending, spreads and what a baseline resolves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_kvcache.verdict.interim import (
    PASS_PARTS,
    REGRESSION_PARTS,
    Policy,
    drift_errors,
    effective_days,
    pass_quantile,
    resolution,
    standard_errors,
    t_quantile,
)
from pytest_kvcache.verdict.interval import Outcome, judge, pooled


@pytest.mark.parametrize("looks", [1, 2, 3])
@pytest.mark.parametrize("family", [1, 12, 24])
def test_looks_never_add_error(looks: int, family: int) -> None:
    """Whatever the number of looks, the error that they spend sums to the same budget."""
    policy = Policy(looks=looks)
    spent = sum(policy.regression_level(look, family) for look in range(1, looks + 1)) * family
    assert spent == pytest.approx(policy.regression_error)
    assert sum(map(policy.pass_level, range(1, looks + 1))) == pytest.approx(policy.pass_error)
    assert len(REGRESSION_PARTS[looks]) == len(PASS_PARTS[looks]) == looks


def test_there_is_no_look_after_the_last() -> None:
    """A fourth look, a look zero and an empty family have no level."""
    policy = Policy()
    for look, family in ((4, 1), (0, 1), (1, 0)):
        with pytest.raises(ValueError, match=r"look|family"):
            policy.regression_level(look, family)
    with pytest.raises(ValueError, match="look 4 of 3"):
        policy.pass_level(4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"looks": 4},
        {"regression_error": 0.0},
        {"pass_error": 0.5},
        {"power": 1.0},
        {"least_effect": 0.2},
        {"margins": {"ttft_geomean_s": 0.01}},
        {"least_boots": 1},
        {"least_df": 0},
    ],
)
def test_rules_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    """A policy that could not decide is no policy."""
    with pytest.raises(ValueError, match=r"."):
        Policy(**wrong)  # type: ignore[arg-type]


def test_quantiles_are_student_s() -> None:
    """The quantiles are those of scipy.stats."""
    assert t_quantile(0.001, 10) == pytest.approx(stats.t.isf(0.001, 10))
    assert standard_errors(6, 3) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(("boots", "df", "family"), [(6, 5, 12), (6, 10, 24), (10, 36, 24), (3, 4, 12)])
def test_what_is_resolved_has_the_power_it_promises(boots: int, df: int, family: int) -> None:
    """At the resolved effect the last look regresses with the power asked for plus what may have passed before."""
    policy = Policy()
    effect = resolution(policy, baseline_boots=boots, df=df, family=family)
    level = policy.regression_level(3, family)
    power = stats.nct.sf(stats.t.isf(level, df), df, effect / standard_errors(boots, 3))
    assert power == pytest.approx(0.90 + 0.03, abs=1e-6)


@pytest.mark.parametrize(("boots", "df", "family"), [(6, 5, 24), (6, 10, 12), (12, 44, 24)])
def test_a_change_as_large_as_the_margin_passes_as_rarely_as_promised(boots: int, df: int, family: int) -> None:
    """With a margin in units of the estimated spread the probability of a pass is the noncentral t's, at each look."""
    policy = Policy()
    effect = resolution(policy, baseline_boots=boots, df=df, family=family)
    for look in (1, 2, 3):
        noncentrality = effect / standard_errors(boots, look)
        quantile = pass_quantile(policy, look, df=df, noncentrality=noncentrality)
        assert quantile >= t_quantile(policy.pass_level(look), df)
        passes = stats.nct.cdf(noncentrality - quantile, df, noncentrality)
        assert passes <= policy.pass_level(look) * (1 + 1e-6)


@given(st.integers(2, 30), st.integers(1, 200), st.integers(1, 100))
def test_more_boots_resolve_more(boots: int, df: int, family: int) -> None:
    """More boots or degrees of freedom resolve smaller effects; a larger family larger ones."""
    policy = Policy()
    now = resolution(policy, baseline_boots=boots, df=df, family=family)
    assert resolution(policy, baseline_boots=boots + 1, df=df, family=family) <= now * (1 + 1e-9)
    assert resolution(policy, baseline_boots=boots, df=df + 1, family=family) <= now * (1 + 1e-9)
    assert resolution(policy, baseline_boots=boots, df=df, family=family + 1) >= now * (1 - 1e-9)


def test_a_pooled_spread_is_the_textbook_s() -> None:
    """Pooling weighs variances by their degrees of freedom, and a context that spreads more keeps its own."""
    rng = np.random.default_rng(2)
    groups = [rng.standard_normal(n) * scale for n, scale in ((6, 1.0), (8, 1.0), (4, 5.0))]
    squares = [((g - g.mean()) ** 2).sum() for g in groups]
    spread = pooled(squares, [5, 7, 3])
    expected = math.sqrt(sum(g.var(ddof=1) * (len(g) - 1) for g in groups) / 15)
    assert spread.sd == pytest.approx([expected, expected, groups[2].std(ddof=1)])
    assert spread.df == 15


def test_a_spread_needs_a_degree_of_freedom() -> None:
    """One boot has no spread."""
    with pytest.raises(ValueError, match="two boots"):
        pooled([0.0], [0])
    with pytest.raises(ValueError, match="two boots"):
        pooled([], [])


def test_arrays_and_single_gates_are_judged_alike() -> None:
    """What the simulation calls with arrays is what a decision calls with one number."""
    rng = np.random.default_rng(1)
    differences, sds = rng.normal(0.05, 0.1, 200), rng.uniform(0.0, 0.08, 200)
    rules = {"df": 10, "baseline_boots": 6, "new_boots": 2, "family": 12, "policy": Policy()}
    together = judge(differences, sds, **rules)  # type: ignore[arg-type]
    for i, (difference, sd) in enumerate(zip(differences, sds, strict=True)):
        alone = judge(difference, sd, **rules)  # type: ignore[arg-type]
        assert (alone.lower, alone.upper, alone.outcome) == (
            together.lower[i],
            together.upper[i],
            together.outcome[i],
        )
    assert set(together.outcome.tolist()) >= {Outcome.OPEN, Outcome.PASS, Outcome.REGRESSED}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 3), st.floats(0, 1), st.floats(0, 1))
def test_what_days_move_is_counted_once(boots: list[int], new: int, boot_sd: float, day_sd: float) -> None:
    """Expected spread and declared drift together are the variance of the difference, however boots lie over days."""
    count = sum(boots)
    day = np.repeat(np.arange(len(boots)), boots)
    covariance = boot_sd**2 * np.eye(count) + day_sd**2 * (day[:, None] == day)
    true = covariance.mean() + boot_sd**2 / new + day_sd**2
    middle = np.eye(count) - 1 / count
    spread = float(np.trace(middle @ covariance) / (count - 1)) if count > 1 else boot_sd**2
    drift = day_sd * drift_errors(count, new, effective_days(boots))
    assert spread * standard_errors(count, new) ** 2 + drift**2 == pytest.approx(true)


@pytest.mark.parametrize("days", [1, 2, 3, 6])
@pytest.mark.parametrize(("sd", "day_sd"), [(0.05, 0.05), (0.09, 0.12), (0.03, 0.01)])
def test_a_declared_drift_keeps_errors_and_power(sd: float, day_sd: float, days: int) -> None:
    """Where sessions differ by what is declared, alarms and false passes stay in their budgets, and power is there."""
    random, sessions, boots = np.random.default_rng(7), 40_000, 6
    policy = Policy(day_sd=day_sd, widest_margin=9.0)
    base = random.normal(0, sd, (sessions, boots))
    base += random.normal(0, day_sd, (sessions, days))[:, np.arange(boots) % days]
    new = random.normal(0, sd, (sessions, policy.looks)) + random.normal(0, day_sd, (sessions, 1))
    spread, middle = base.std(-1, ddof=1), base.mean(-1)

    def outcomes(shift: float | np.ndarray[tuple[int], np.dtype[np.float64]], look: int) -> list[float]:
        said = judge(
            new[:, :look].mean(-1) - middle + shift, spread, df=boots - 1, baseline_boots=boots, new_boots=look,
            family=3, policy=policy, days=days,
        )  # fmt: skip
        return [float((said.outcome == outcome).mean()) for outcome in (Outcome.REGRESSED, Outcome.PASS)]

    unchanged = judge(
        new.mean(-1) - middle, spread, df=boots - 1, baseline_boots=boots, new_boots=3, family=3, policy=policy,
        days=days,
    )  # fmt: skip

    def by_chance(level: float) -> float:
        # Against one day the sum of squares is on the safe side; against six all is the spread's, and t is exact.
        return 0.0 if days == 1 else 3 * math.sqrt(level * (1 - level) / sessions)

    for look in (1, 3):
        alarms = policy.regression_level(look, 3)
        assert outcomes(0.0, look)[0] <= alarms + by_chance(alarms)
    passes = policy.pass_level(3)
    assert outcomes(unchanged.margin, 3)[1] <= passes + by_chance(passes)
    assert outcomes(unchanged.margin, 3)[0] >= policy.power - by_chance(policy.power)
