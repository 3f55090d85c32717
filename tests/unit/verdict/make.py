"""Baselines, boots and requests for the tests of the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pytest_kvcache.campaign.comparability import workload_hash
from pytest_kvcache.load.records import OK, RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.verdict.cells import Cell, StoredBoot, StoredCell, name_of
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, METRICS
from pytest_kvcache.verdict.procedure import Boot, Evidence

HASH = workload_hash({"seed": 1})
KEYS = {"hardware.cpu": "x"}
CELL = Cell("p", "m", "pnfs", 1000)
#: Twelve gates: two tiers, two contexts, three metrics.
FAMILY = 12
#: Metrics that a tier may have none of.
OPTIONAL = [metric for metric in METRICS if metric.optional]
LEVELS = {"ttft_geomean_s": 0.5, "tokens_per_s": 3000.0, "decode_tokens_per_s": 60.0}
#: Six deviations with mean 0 and sd 1.
UNIT = np.array([-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]) / np.std([-1.25, -0.75, -0.25, 0.25, 0.75, 1.25], ddof=1)


def figures(worse: Mapping[str, float] | float = 0.0) -> dict[str, float]:
    """Return figures that are worse than LEVELS by these log ratios (one for all metrics, or by key)."""
    result = {}
    for metric in DEFAULT_METRICS:
        by = worse.get(metric.key, 0.0) if isinstance(worse, Mapping) else worse
        result[metric.key] = LEVELS[metric.key] * float(np.exp(-by if metric.higher_is_better else by))
    return result


def boot(worse: Mapping[str, float] | float = 0.0, **more: object) -> Boot:
    """Return a new boot that is worse by these log ratios."""
    return Boot(figures(worse), **more)  # type: ignore[arg-type]


def stored(
    deviations: Sequence[float] | None = None,
    *,
    sd: float = 0.03,
    cell: Cell = CELL,
    keys: Mapping[str, str] = KEYS,
    canary: Mapping[str, float] | None = None,
    sessions: int = 2,
) -> StoredCell:
    """Return a baseline whose boots deviate from LEVELS by these log ratios; UNIT times `sd` for None."""
    values = (UNIT * sd).tolist() if deviations is None else list(deviations)
    boots = tuple(
        StoredBoot(run_id=f"run-{n % sessions}", recorded="2026-11-24", figures=figures(v), canary=dict(canary or {}))
        for n, v in enumerate(values)
    )
    context = {"workload.context_tokens": str(cell.context_tokens)}
    return StoredCell(
        cell=name_of(cell),
        label=cell.tier,
        comparability={**keys, **context},
        versions={"vllm": "1"},
        workload=HASH,
        boots=boots,
    )


def with_figures(base: StoredCell, added: Mapping[str, list[float]]) -> StoredCell:
    """Return a baseline whose boots have more figures: a list over boots for each key."""
    boots: tuple[StoredBoot, ...] = tuple(
        each.model_copy(update={"figures": {**each.figures, **{key: values[n] for key, values in added.items()}}})
        for n, each in enumerate(base.boots)
    )
    return base.model_copy(update={"boots": boots})


def sibling(deviations: Sequence[float] | None = None, *, sd: float = 0.03, context: int = 3500) -> StoredCell:
    """Return the baseline of another context of the same tier."""
    return stored(deviations, sd=sd, cell=Cell("p", "m", "pnfs", context))


def evidence(*boots: Boot, keys: Mapping[str, str] = KEYS, workload: str = HASH) -> Evidence:
    """Return what was measured, in the baseline's own environment."""
    return Evidence(boots, {**keys, "workload.context_tokens": "1000"}, workload)


def requests(*, users: int = 6, rounds: int = 8, ttft: float = 0.5, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Return a run in which every user asks once in each round of 6 seconds; noise is the sd of log TTFT."""
    rng = np.random.default_rng(seed)
    records = []
    for turn in range(rounds):
        for user in range(users):
            start = turn * 6.0 + user
            first = start + ttft * float(np.exp(noise * rng.standard_normal()))
            last = first + 0.4 * float(np.exp(noise * rng.standard_normal()))
            records.append(
                RequestRecord(
                    user=user + 1,
                    round=turn + 1,
                    intended_start_s=start,
                    due_s=start,
                    actual_start_s=start,
                    first_token_s=first,
                    last_token_s=last,
                    prompt_tokens=1000,
                    generated_tokens=20,
                    cached_tokens=900,
                    status=OK,
                    token_times_s=list(np.linspace(first, last, 20)),
                )
            )
    frame: pd.DataFrame = to_frame(records)
    return frame
