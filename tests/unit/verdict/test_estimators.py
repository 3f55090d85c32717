"""The comparison of estimators that docs/noise.md rests on reads requests as the verdict does."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.power.estimators import ESTIMATORS, compare
from pytest_kvcache.verdict.rounds import judged_figures
from tests.unit.verdict.make import requests


def test_the_judged_one_is_the_verdict_s() -> None:
    """The line that is called judged is the figure that baselines keep."""
    rows = requests(noise=0.3)
    assert np.exp(ESTIMATORS["winsorized (judged)"](rows)) == pytest.approx(judged_figures(rows)["ttft_geomean_s"])


def test_a_stall_moves_means_and_hardly_what_resists_it() -> None:
    """One hanging request of 48 is most of an arithmetic mean, and little of a winsorized one or of a median."""
    table = compare([requests(noise=0.2, seed=seed) for seed in range(6)]).set_index("estimator")
    assert table["stall"]["arithmetic mean"] > 0.2
    assert table["stall"]["geometric mean"] > 2 * table["stall"]["winsorized (judged)"]
    assert abs(table["stall"]["median"]) < 0.03


def test_where_ttft_has_one_hump_a_mean_repeats_better_than_medians() -> None:
    """Independent requests of equal spread: sd of the mean is that over the root of their number, of medians more."""
    table = compare([requests(noise=0.2, seed=seed) for seed in range(60)]).set_index("estimator")
    assert table["sd"]["geometric mean"] == pytest.approx(0.2 / np.sqrt(48), rel=0.3)
    assert table["sd"]["winsorized (judged)"] < table["sd"]["medians of sessions"]
