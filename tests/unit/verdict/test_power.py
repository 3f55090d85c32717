"""The simulation: the same decisions as the product's, and the promises that can be kept in a short one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.power.sessions import (
    IMPROVED,
    INCONCLUSIVE,
    OPEN,
    PASSED,
    REGRESSED,
    Scenario,
    cells_after,
    draw,
    play,
    usual_margin,
)
from pytest_kvcache.verdict.cells import Cell
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import decide
from tests.unit.verdict.make import boot, evidence, stored

_NAMES = {
    OPEN: "needs-boot",
    PASSED: "pass",
    REGRESSED: "regressed",
    IMPROVED: "improved",
    INCONCLUSIVE: "inconclusive",
}
_KEYS = [metric.key for metric in DEFAULT_METRICS]


def _by_key(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[str, float]:
    return dict(zip(_KEYS, values.tolist(), strict=True))


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(sds=(0.03, 0.03, 0.03), shift=0.1),
        Scenario(sds=(0.01, 0.05, 0.12), contexts=3, context_factors=(1, 3, 0.5)),
        Scenario(sds=(0.03, 0.03, 0.03), contexts=1, policy=Policy(looks=2)),
        Scenario(sds=(0.03, 0.03, 0.03), policy=Policy(day_sd=0.02), shift=0.15, days=2),
    ],
)
def test_simulated_sessions_decide_as_the_product_does(scenario: Scenario) -> None:
    """On random boots, every cell after every look has the verdict that `decide` gives."""
    base, new = draw(scenario, 12, np.random.default_rng(3))
    seen = set()
    for look in range(1, scenario.policy.looks + 1):
        fast = cells_after(scenario, base, new[..., :look])
        for session, tier, context in np.ndindex(fast.shape):
            cells = [
                stored([0.0] * scenario.baseline_boots, cell=Cell("p", "m", "t", 1000 + c), sessions=scenario.days)
                for c in range(scenario.contexts)
            ]
            cells = [
                cell.model_copy(
                    update={
                        "boots": tuple(
                            old.model_copy(update={"figures": boot(_by_key(base[session, tier, c, :, k])).figures})
                            for k, old in enumerate(cell.boots)
                        )
                    }
                )
                for c, cell in enumerate(cells)
            ]
            now = evidence(*(boot(_by_key(new[session, tier, context, :, i])) for i in range(look)))
            now = replace(now, comparability=cells[context].comparability)
            slow = decide(now, cells[context], family=scenario.gates, siblings=cells, policy=scenario.policy)
            assert slow.status == _NAMES[int(fast[session, tier, context])]
            seen.add(slow.status)
    assert len(seen) >= 2


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_false_alarms_stay_in_their_budget_however_many_looks(looks: int) -> None:
    """Where nothing changed, no number of looks raises an alarm in more than the budget's share of sessions."""
    ended = play(Scenario(policy=Policy(looks=looks)), 4000, seed=looks)
    alarms = (ended.status == REGRESSED).any((1, 2)).mean()
    assert alarms <= Policy().regression_error + 3 * np.sqrt(0.04 * 0.96 / 4000)


@pytest.mark.parametrize(("boots", "contexts"), [(6, 1), (6, 2), (10, 4)])
def test_at_the_margin_it_regresses_and_does_not_pass(boots: int, contexts: int) -> None:
    """A change as large as the margin regresses in at least 90 % and passes in at most 5 % of sessions."""
    scenario = Scenario(tiers=1, contexts=contexts, baseline_boots=boots, family=24)
    status = play(replace(scenario, shift=usual_margin(scenario, seed=5)), 4000, seed=5).status[:, 0, 0]
    assert (status == REGRESSED).mean() >= 0.90 - 3 * np.sqrt(0.9 * 0.1 / 4000)
    assert (status == PASSED).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_sessions_are_seeded() -> None:
    """The same seed gives the same sessions, another one others."""
    one, same, other = (play(Scenario(), 200, seed=seed).boots for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
