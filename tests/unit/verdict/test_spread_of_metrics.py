"""The table of how far boots spread in every metric."""

from __future__ import annotations

import math

import pytest

from benchmarks.power.metrics import table, together
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from tests.unit.verdict.make import UNIT, stored


def with_yardsticks(slope: float, apart: float) -> StoredCell:
    """Return a baseline whose cold prefill spreads by 10 %, and whose hits follow it, and spread by themselves."""
    base = stored()
    rest = [1.0, -1.0, 0.0, 0.0, -1.0, 1.0]  # not correlated with UNIT
    boots = []
    for boot, unit, own in zip(base.boots, UNIT, rest, strict=True):
        cold = 0.1 * float(unit)
        hits = slope * cold + apart * own
        figures = {"ttft_cold_geomean_s": 0.5 * math.exp(cold), "ttft_hit_over_cold": 0.2 * math.exp(hits - cold)}
        boots.append(boot.model_copy(update={"figures": {**boot.figures, **figures}}))
    return base.model_copy(update={"boots": tuple(boots)})


def test_every_metric_that_is_there_has_a_row() -> None:
    """A row has the mean in natural units, the spread of a boot, and what it can tell; absent metrics have none."""
    rows = table([stored(sd=0.03)])
    assert list(rows["metric"]) == [metric.short for metric in DEFAULT_METRICS]
    assert set(rows["sd of a boot"]) == {"3.0%"}
    assert rows["mean"].iloc[0] == "0.5"


@pytest.mark.parametrize(("slope", "apart", "ratio"), [(1.0, 0.0, "0.0%"), (0.0, 0.0, "10.5%")])
def test_how_hits_follow_cold_prefill(slope: float, apart: float, ratio: str) -> None:
    """Hits that follow cold prefill have a quiet ratio to it, and those that do not have its noise."""
    line = together(with_yardsticks(slope, apart))
    assert f"their ratio {ratio}" in line
    assert f"slope {slope:.2f}" in line or slope == 0
    assert together(stored()) == ""
