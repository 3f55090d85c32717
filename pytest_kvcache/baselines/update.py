"""Makes baselines of a session's boots, says which boots are refused, and shows what a new baseline would change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pytest_kvcache.baselines import requests_table
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict import spread
from pytest_kvcache.verdict.cells import Cell, StoredBoot, StoredCell, name_of
from pytest_kvcache.verdict.comparability import differences
from pytest_kvcache.verdict.interim import Policy, t_quantile
from pytest_kvcache.verdict.interval import Outcome, judge
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric
from pytest_kvcache.verdict.procedure import Boot, judged, unusable

_CONFIDENCE = 0.95
#: A wider margin, as a share, is no number worth a look.
_NOTHING_TOLD = 10.0


def refusals(
    boots: Sequence[Boot], metrics: Sequence[Metric], *, dirty: str = "", least_boots: int = Policy.least_boots
) -> list[str]:
    """Return the reasons why these boots must not become a baseline, one line each; empty where they may.

    Args:
        boots: All boots of the cell.
        metrics: What is judged.
        dirty: Uncommitted parts of the code under test, "" where everything is committed.
        least_boots: Smallest number of boots: 6 for a profile that gates. A profile that only records may ask for
            fewer; verdicts then say that its baseline is too small.
    """
    wanted = judged(metrics, boots, None)
    lines = [f"boot {n}: {line}" for n, boot in enumerate(boots, start=1) for line in unusable(boot, wanted)]
    if dirty:
        lines.append(f"uncommitted changes: {dirty}")
    if len(boots) < least_boots:
        lines.append(f"{len(boots)} boots are too few: a baseline needs {least_boots}")
    return lines


def record(
    cell: Cell,
    boots: Sequence[tuple[Boot, pd.DataFrame]],
    *,
    label: str,
    run_id: str,
    recorded: str,
    comparability: Mapping[str, str],
    versions: Mapping[str, str],
    workload: str,
    round_s: float | None = None,
    old: StoredCell | None = None,
) -> Write:
    """Return the write that makes a baseline of boots and their requests.

    Args:
        cell: The cell that the baseline belongs to.
        boots: Each boot with its table of requests, once `refusals` has nothing against them.
        label: The tier's name in outputs.
        run_id: Name of the session.
        recorded: Date of the session, YYYY-MM-DD (UTC).
        comparability: As in `StoredCell`.
        versions: As in `StoredCell`.
        workload: As in `StoredCell`.
        round_s: As in `StoredCell`.
        old: The cell's present baseline.

    Raises:
        BaselineError: A value does not fit the schema.
    """
    packed = requests_table.pack([rows for _, rows in boots])
    try:
        new = StoredCell(
            cell=name_of(cell),
            label=label,
            comparability=dict(comparability),
            versions=dict(versions),
            workload=workload,
            round_s=round_s,
            boots=tuple(
                StoredBoot(
                    run_id=run_id,
                    recorded=recorded,
                    figures={k: float(v) for k, v in boot.figures.items() if math.isfinite(v)},
                    canary={k: float(v) for k, v in boot.canary.items()},
                    account=boot.account,
                )
                for boot, _ in boots
            ),
            requests=requests_table.describe(packed, sum(len(rows) for _, rows in boots)),
        )
    except ValueError as error:
        raise BaselineError(f"cannot become a baseline: {error!s:.400}", where=str(cell)) from None
    return Write(new, packed, old)


def extend(write: Write, old: StoredCell, old_requests: pd.DataFrame) -> Write:
    """Return the write that keeps the boots of `old` and adds those of `write`.

    So a baseline can be taken over several days.

    Args:
        write: The new boots, from `record`.
        old: The cell's present baseline.
        old_requests: The requests of `old` (`store.read_requests`).

    Raises:
        BaselineError: The two differ in cell, environment, workload or versions, so that they have no common centre; or
            `write` has no requests; or its session is in `old` already.
    """
    new, where = write.new, str(old.address)
    why = [*differences(old.comparability, new.comparability), *differences(old.versions, new.versions)]
    if (old.cell, old.workload, old.round_s) != (new.cell, new.workload, new.round_s):
        why.append("another cell or workload")
    if {b.run_id for b in old.boots} & {b.run_id for b in new.boots}:
        why.append("the session's boots are in it already")
    if write.requests is None or new.requests is None:
        why.append("no requests")
    if why or write.requests is None or new.requests is None:
        raise BaselineError(f"cannot be extended: {'; '.join(why)}", where=where, todo="record all boots anew")
    added = requests_table.unpack(write.requests, new.requests, where=where)
    frames = [
        rows[rows["boot"] == number]
        for rows, cell in ((old_requests, old), (added, new))
        for number in range(len(cell.boots))
    ]
    packed = requests_table.pack(frames)
    about = requests_table.describe(packed, sum(map(len, frames)))
    return Write(new.model_copy(update={"boots": old.boots + new.boots, "requests": about}), packed, old)


@dataclass(frozen=True)
class MetricLevel:
    """Level and spread of a cell in one metric.

    Args:
        metric: The metric.
        boots: Number of boots (K).
        mean: Geometric mean of the boots, in the metric's unit.
        low: Lower end of the mean's 95 % t interval, from the cell's own boots; NaN for one boot.
        high: Upper end of that interval.
        sd: Standard deviation of a boot on the log scale, pooled over the tier; NaN without a degree of freedom.
        margin: Smallest change that the cell can resolve, as a share, or the declared margin where that is larger; NaN
            without `sd`.
        too_wide: Whether that is more than the rules let pass.
    """

    metric: Metric
    boots: int
    mean: float
    low: float
    high: float
    sd: float
    margin: float
    too_wide: bool

    def words(self) -> dict[str, str]:
        """Return interval, spread and margin as tables have them, by column; `-` where there is none to tell."""
        return {
            "95 % interval": "-" if math.isnan(self.low) else f"{self.low:.4g} … {self.high:.4g}",
            "boot sd": "-" if math.isnan(self.sd) else f"{math.expm1(self.sd):.1%}",
            "margin": "-" if math.isnan(self.margin) or self.margin > _NOTHING_TOLD else f"{self.margin:+.0%}",
        }


def levels(tier: Sequence[StoredCell], *, family: int, policy: Policy | None = None) -> tuple[MetricLevel, ...]:
    """Return mean, interval, spread and margin of each metric that is judged and that these cells have.

    Args:
        tier: The cell, then the cells that it is pooled with (`procedure.tier_of`).
        family: Number of declared gates.
        policy: The rules of verdicts; None takes the default rules.
    """
    policy = policy or Policy()
    count = len(tier[0].boots)
    result = []
    for metric in policy.metrics:
        if tier[0].unmeasured([metric]):
            continue
        own = np.array([metric.of(boot.figures) for boot in tier[0].boots])
        sd, margin, half, too_wide = math.nan, math.nan, math.nan, False
        if spread.degrees(tier, metric, adjust_for=policy.adjust_for) > 0:
            known = spread.level(tier, metric, adjust_for=policy.adjust_for)
            sd = known.sd
            resolved = judge(
                0.0,
                sd,
                df=known.df,
                baseline_boots=count,
                new_boots=policy.looks,
                family=family,
                policy=policy,
                metric=metric.key,
                days=tier[0].days(),
                usual_leverage=known.usual_leverage,
            )
            too_wide = int(resolved.outcome) == Outcome.TOO_WIDE
            # The exponent is capped, since a cell that resolves next to nothing would overflow.
            margin = float(np.expm1(min(float(resolved.margin), 100.0)))
        if count > 1:
            half = t_quantile((1 - _CONFIDENCE) / 2, count - 1) * float(own.std(ddof=1)) / math.sqrt(count)
        middle = metric.natural(float(own.mean()))
        ends = (middle * math.exp(-half), middle * math.exp(half))
        result.append(MetricLevel(metric, count, middle, *ends, sd, margin, too_wide))
    return tuple(result)


@dataclass(frozen=True)
class MetricChange:
    """The change of one metric between two baselines of a cell.

    Args:
        metric: The metric.
        old: Geometric mean of the old baseline's boots, in the metric's unit.
        new: Geometric mean of the new baseline's boots, in the metric's unit.
        ratio: New over old.
        low: Lower end of the ratio's 95 % interval (Welch's t on logs, as the spreads need not be alike); NaN where a
            baseline has a single boot.
        high: Upper end of that interval.
    """

    metric: Metric
    old: float
    new: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class BaselineDifference:
    """The difference between two baselines of a cell.

    Args:
        comparability: One line for each comparability key that differs; the ratios then compare different things.
        versions: One line for each version that differs.
        metrics: The change of every metric that both have.
    """

    comparability: tuple[str, ...]
    versions: tuple[str, ...]
    metrics: tuple[MetricChange, ...]

    def table(self) -> pd.DataFrame:
        """Return one line for each metric: old, new, ratio and its interval."""
        return pd.DataFrame(
            {
                "metric": m.metric.label,
                "old": f"{m.old:.4g}",
                "new": f"{m.new:.4g}",
                "ratio": f"{m.ratio:.3f}",
                "95 % interval": "-" if math.isnan(m.low) else f"{m.low:.3f} … {m.high:.3f}",
            }
            for m in self.metrics
        )


def diff(old: StoredCell, new: StoredCell, metrics: Sequence[Metric] = DEFAULT_METRICS) -> BaselineDifference:
    """Return what changed between two baselines of a cell; `--update-baselines` shows it before it writes."""
    keys = differences(old.comparability, new.comparability)
    if old.workload != new.workload:
        keys.append(f"workload hash: {old.workload:.12} -> {new.workload:.12}")
    missing = {*old.unmeasured(metrics), *new.unmeasured(metrics)}
    moved = tuple(_moved(metric, old, new) for metric in metrics if metric not in missing)
    return BaselineDifference(tuple(keys), tuple(differences(old.versions, new.versions)), moved)


def _moved(metric: Metric, old: StoredCell, new: StoredCell) -> MetricChange:
    one, two = (np.array([metric.of(boot.figures) for boot in cell.boots]) for cell in (old, new))
    turned = -1 if metric.higher_is_better else 1
    effect, half = float(two.mean() - one.mean()), math.nan
    if min(len(one), len(two)) > 1:
        parts = [float(v.var(ddof=1)) / len(v) for v in (one, two)]
        scale = sum(p**2 / (len(v) - 1) for p, v in zip(parts, (one, two), strict=True))
        half = t_quantile((1 - _CONFIDENCE) / 2, max(1, int(sum(parts) ** 2 / scale))) if scale > 0 else 0.0
        half *= math.sqrt(sum(parts))
    return MetricChange(
        metric,
        old=metric.natural(float(one.mean())),
        new=metric.natural(float(two.mean())),
        ratio=math.exp(turned * effect),
        low=math.exp(turned * effect - half),
        high=math.exp(turned * effect + half),
    )
