"""A machine whose speed drifts, and a canary that sees it: one gate, judged with and without `adjust_for`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome, judge
from pytest_kvcache.verdict.spread import usual_leverage

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Machine:
    """How it drifts; all on the log scale.

    Args:
        step: sd of the change of its speed from boot to boot.
        away: sd of the change from the baseline's session to the one that is judged.
        slope: Of the metric on the speed.
        sd: Of a boot beside that.
        blur: sd of a reading about the speed that the boot had: the slope comes out too small by it.
    """

    step: float = 0.06
    away: float = 0.08
    slope: float = 2.0
    sd: float = 0.05
    blur: float = 0.0


@dataclass(frozen=True)
class AccountCheck:
    """What was said of many gates.

    Args:
        outcome: Of `Outcome`, final.
        margin: Each gate's, log scale.
        boots: That each took.
    """

    outcome: npt.NDArray[np.int64]
    margin: Floats
    boots: npt.NDArray[np.int64]


def play(
    machine: Machine, sessions: int, seed: int, *, baseline_boots: int, adjust: bool, family: int, shift: float = 0.0
) -> AccountCheck:
    """Return what gates say of a change by `shift`, each on a baseline and boots of its own."""
    rng, policy = np.random.default_rng(seed), Policy(widest_margin=9.0)
    old_speed = np.cumsum(rng.standard_normal((sessions, baseline_boots)) * machine.step, -1)
    new_speed = np.cumsum(rng.standard_normal((sessions, policy.looks)) * machine.step, -1)
    new_speed += old_speed.mean(-1, keepdims=True) + rng.standard_normal((sessions, 1)) * machine.away
    old, new = (machine.slope * x + rng.standard_normal(x.shape) * machine.sd for x in (old_speed, new_speed))
    x_old, x_new = (x + rng.standard_normal(x.shape) * machine.blur for x in (old_speed, new_speed))
    outcome = np.full(sessions, int(Outcome.OPEN))
    boots, margin = np.zeros(sessions, dtype=np.int64), np.zeros(sessions)
    for look in range(1, policy.looks + 1):
        fit = _fit(x_old, old, x_new[:, :look].mean(-1)) if adjust else _plain(old)
        said = judge(
            new[:, :look].mean(-1) + shift - old.mean(-1) - fit.explained,
            fit.sd,
            df=baseline_boots - 1 - int(adjust),
            baseline_boots=baseline_boots,
            new_boots=look,
            family=family,
            policy=policy,
            leverage=fit.leverage,
            usual_leverage=usual_leverage(baseline_boots, baseline_boots - 1) if adjust else 0.0,
        )
        still = outcome == Outcome.OPEN
        boots += still
        outcome, margin = np.where(still, said.outcome, outcome), np.asarray(said.margin)
    return AccountCheck(outcome, margin, boots)


@dataclass(frozen=True)
class _Fit:
    sd: Floats
    explained: Floats
    leverage: Floats


def _plain(old: Floats) -> _Fit:
    nothing = np.zeros(len(old))
    return _Fit(old.std(-1, ddof=1), nothing, nothing)


def _fit(x: Floats, y: Floats, x_new: Floats) -> _Fit:
    apart = x - x.mean(-1, keepdims=True)
    squares = (apart**2).sum(-1)
    slope = (apart * y).sum(-1) / squares
    rest = y - y.mean(-1, keepdims=True) - slope[:, None] * apart
    moved = x_new - x.mean(-1)
    return _Fit(np.sqrt((rest**2).sum(-1) / (x.shape[-1] - 2)), slope * moved, moved**2 / squares)
