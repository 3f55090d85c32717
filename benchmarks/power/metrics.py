"""How far boots spread in every metric: `python -m benchmarks.power.metrics BASELINES [--profile NAME]`.

A row a metric and tier, with the geometric mean over all boots of a cell and the standard deviation of a boot about it,
and what a profile that judged this metric alone could tell with so many boots. Where there are yardsticks it also says
how hits and cold prefill move together: their correlation over boots, and the slope of one on the other, on logarithms.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pytest_kvcache.baselines import files
from pytest_kvcache.verdict import spread
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.interim import Policy, resolution
from pytest_kvcache.verdict.metrics import BY_NAME, METRICS

_RATIO, _COLD = BY_NAME["tier"], BY_NAME["compute"]


def table(cells: Sequence[StoredCell]) -> pd.DataFrame:
    """Return a row a cell and metric that all its boots have."""
    rows = []
    for cell in cells:
        missing = cell.unmeasured(METRICS)
        for metric in METRICS:
            if metric in missing or len(cell.boots) < 2:
                continue
            known = spread.level([cell], metric)
            told = known.sd * resolution(
                Policy(metrics=(metric,)), baseline_boots=len(cell.boots), df=known.df, family=1
            )
            rows.append(
                {
                    "tier": cell.cell.tier,
                    "context": str(cell.cell.context_tokens),
                    "metric": metric.short,
                    "boots": str(len(cell.boots)),
                    "mean": f"{metric.natural(known.mean):.4g}",
                    "sd of a boot": f"{math.expm1(known.sd):.1%}",
                    "change that it tells alone": f"{math.expm1(min(told, 50.0)):+.0%}",
                }
            )
    return pd.DataFrame(rows)


def together(cell: StoredCell) -> str:
    """Return how TTFT of hits follows cold prefill over the boots of a cell, "" where there are no yardsticks."""
    if cell.unmeasured([_RATIO, _COLD]) or len(cell.boots) < 3:
        return ""
    cold = np.array([_COLD.of(boot.figures) for boot in cell.boots])
    hits = cold + np.array([_RATIO.of(boot.figures) for boot in cell.boots])
    slope = float(np.polyfit(cold, hits, 1)[0])
    sds = ", ".join(
        f"{name} {math.expm1(float(values.std(ddof=1))):.1%}"
        for name, values in (("hits", hits), ("cold prefill", cold), ("their ratio", hits - cold))
    )
    correlation = float(np.corrcoef(cold, hits)[0, 1])
    return f"{cell.address}: sd of a boot: {sds}; correlation {correlation:.2f}, slope {slope:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baselines", type=Path)
    parser.add_argument("--profile")
    args = parser.parse_args()
    cells = [cell for cell in files.readable(files.scan(args.baselines)) if args.profile in {None, cell.cell.profile}]
    print(table(cells).to_string(index=False))
    for line in filter(None, map(together, cells)):
        print(line)


if __name__ == "__main__":
    main()
