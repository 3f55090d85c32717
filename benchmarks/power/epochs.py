"""How far boots and epochs of one boot spread: a two-way layout, boots by epochs, one figure in each place.

An epoch is one load on a pair that is up already. The mean of each epoch over boots is the drift within a boot; what is
left once boots and drift are taken out is an epoch's own noise (analysis of variance without replication; Searle,
Casella & McCulloch, "Variance Components", Wiley 1992, chapter 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """What boots and epochs of one metric are made of; all on the log scale, worse is positive.

    Args:
        boots: Rows of the layout.
        epochs: Columns.
        first_sd: sd over boots of the first epoch: what a run of one load a boot sees.
        mean_sd: sd over boots of a boot's mean.
        boot_sd: Of what all epochs of a boot share, which no number of epochs averages out.
        epoch_sd: Of an epoch within its boot, drift taken out.
        drift: Of the last epoch against the first, mean over boots.
        drift_half: Half of its 95 % interval (t on the boots' own differences).
    """

    boots: int
    epochs: int
    first_sd: float
    mean_sd: float
    boot_sd: float
    epoch_sd: float
    drift: float
    drift_half: float


def components(logs: Floats) -> Components:
    """Take a layout apart.

    Args:
        logs: (boots, epochs), turned so that worse is positive.

    Raises:
        ValueError: There are less than two boots or two epochs.
    """
    boots, epochs = logs.shape
    if boots < 2 or epochs < 2:
        raise ValueError(f"{boots} boots of {epochs} epochs: two of each are needed")
    by_boot = logs.mean(axis=1)
    rest = logs - by_boot[:, None] - logs.mean(axis=0) + logs.mean()
    within = float((rest**2).sum()) / ((boots - 1) * (epochs - 1))
    of_means = float(by_boot.var(ddof=1))
    moved = logs[:, -1] - logs[:, 0]
    half = float(stats.t.ppf(0.975, boots - 1) * moved.std(ddof=1) / np.sqrt(boots))
    return Components(
        boots=boots,
        epochs=epochs,
        first_sd=float(logs[:, 0].std(ddof=1)),
        mean_sd=float(np.sqrt(of_means)),
        boot_sd=float(np.sqrt(max(0.0, of_means - within / epochs))),
        epoch_sd=float(np.sqrt(within)),
        drift=float(moved.mean()),
        drift_half=half,
    )


def layout(cells: Iterable[StoredCell], metric: Metric) -> Floats:
    """Return (boots, epochs) of one tier's cells, an epoch each, in the order of their contexts.

    Boots are those that all cells have, by the session that they were taken in and their place in it.
    """
    ordered = sorted(cells, key=lambda stored: stored.cell.context_tokens)
    columns = []
    for stored in ordered:
        runs = pd.Series([boot.run_id for boot in stored.boots])
        boots = pd.MultiIndex.from_arrays([runs, runs.groupby(runs).cumcount()])
        columns.append(pd.Series([metric.of(boot.figures) for boot in stored.boots], index=boots))
    return pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64)


def table(cells: Iterable[StoredCell]) -> pd.DataFrame:
    """Return a row a tier and metric: sds and the drift, in percent."""
    tiers: dict[str, list[StoredCell]] = {}
    for stored in cells:
        tiers.setdefault(stored.cell.tier, []).append(stored)
    lines = []
    for tier, of_tier in tiers.items():
        for metric in DEFAULT_METRICS:
            found = components(layout(of_tier, metric))
            lines.append(
                {
                    "tier": tier,
                    "metric": metric.short,
                    "boots": found.boots,
                    "sd of a boot (first epoch)": _percent(found.first_sd),
                    f"of the mean of {found.epochs} epochs": _percent(found.mean_sd),
                    "what epochs of a boot share": _percent(found.boot_sd),
                    "an epoch's own": _percent(found.epoch_sd),
                    "drift, last epoch to first": f"{np.expm1(found.drift):+.1%} ± {np.expm1(found.drift_half):.1%}",
                }
            )
    return pd.DataFrame(lines)


def _percent(log: float) -> str:
    return f"{np.expm1(log):.1%}"
