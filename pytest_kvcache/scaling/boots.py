"""How many boots a verdict takes at a size: boots are drawn, and the procedure that decides runs decides."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

from pytest_kvcache.scaling.point import Point
from pytest_kvcache.verdict.cells import CellName, StoredBoot, StoredCell
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import Boot, Evidence, decide

_WORKLOAD = "0" * 64


@dataclass(frozen=True)
class Spread:
    """How figures of boots differ, on the log scale.

    Args:
        boot: sd of what boots of one build differ by, however many requests they have.
        request: sd of one request's TTFT within a boot.
    """

    boot: float = 0.02
    request: float = 0.8

    def of(self, point: Point) -> float:
        """Return the sd of a boot's mean at a size: users ask again and again, and count once."""
        return math.hypot(self.boot, self.request / math.sqrt(point.sessions))


@dataclass(frozen=True)
class Boots:
    """What verdicts took, nothing having changed.

    Args:
        mean: Boots of a verdict.
        passed: Share of the verdicts that passed.
        margin: The change that may pass, as a share; the mean over baselines.
        sd: Of a boot, log scale.
    """

    mean: float
    passed: float
    margin: float
    sd: float


def boots_needed(point: Point, *, spread: Spread, family: int, sessions: int, seed: int = 0) -> Boots:
    """Play so many sessions of one cell in which nothing changed, each with a baseline of its own.

    Args:
        point: The size.
        spread: How boots differ.
        family: Declared gates.
        sessions: How many.
        seed: Equal seeds give equal figures.
    """
    drawn, policy, sd = random.Random(seed), Policy(), spread.of(point)  # noqa: S311 - reproducible, not secret
    counts, passed, margins = [], 0, []
    for _ in range(sessions):
        stored = _stored([_figures(drawn, sd) for _ in range(policy.least_boots)])
        boots: list[Boot] = []
        while True:
            boots.append(Boot(_figures(drawn, sd)))
            verdict = decide(Evidence(boots, {}, _WORKLOAD), stored, family=family, policy=policy)
            if verdict.final:
                break
        counts.append(len(boots))
        passed += verdict.status in {"pass", "improved"}
        margins += [math.expm1(gate.margin) for gate in verdict.gates[:1]]
    return Boots(statistics.fmean(counts), passed / sessions, statistics.fmean(margins) if margins else math.nan, sd)


def _figures(drawn: random.Random, sd: float) -> dict[str, float]:
    return {metric.key: math.exp(drawn.gauss(0.0, sd)) for metric in DEFAULT_METRICS}


def _stored(figures: list[dict[str, float]]) -> StoredCell:
    return StoredCell(
        cell=CellName(profile="p", machine="m", tier="t", context_tokens=1),
        label="t",
        comparability={},
        versions={},
        workload=_WORKLOAD,
        boots=tuple(StoredBoot(run_id="r", recorded="2026-01-01", figures=each) for each in figures),
    )
