"""Boots and epochs are taken apart as they were put together, so that published spreads mean what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.power.epochs import Floats, components, layout, table
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from tests.unit.verdict.make import CELL, stored


def drawn(*, boots: int, boot_sd: float, epoch_sd: float) -> Floats:
    """Return (boots, 3 epochs) that drift by 0.2 to the last, seeded."""
    rng = np.random.default_rng(20261124)
    logs: Floats = rng.normal(0, boot_sd, (boots, 1)) + np.array([0.0, 0.15, 0.2])
    return logs + rng.normal(0, epoch_sd, (boots, 3))


def test_components_are_found_again() -> None:
    """Many boots give back the spread of boots, that of epochs and the drift that they were drawn with."""
    found = components(drawn(boots=4000, boot_sd=0.10, epoch_sd=0.04))
    assert found.boot_sd == pytest.approx(0.10, rel=0.05)
    assert found.epoch_sd == pytest.approx(0.04, rel=0.05)
    assert found.drift == pytest.approx(0.2, abs=0.005)
    assert found.first_sd == pytest.approx(np.hypot(0.10, 0.04), rel=0.05)
    assert found.mean_sd == pytest.approx(np.sqrt(0.10**2 + 0.04**2 / 3), rel=0.05)


def test_boots_that_share_nothing_have_no_spread_of_their_own() -> None:
    """Epochs that are as independent as boots leave next to nothing to the boot."""
    found = components(drawn(boots=4000, boot_sd=0.0, epoch_sd=0.05))
    assert found.boot_sd < 0.006


def test_drift_is_no_noise() -> None:
    """Epochs that drift alike in every boot have no spread, and the drift's interval is a point."""
    found = components(drawn(boots=4, boot_sd=0.1, epoch_sd=0.0))
    assert found.epoch_sd == pytest.approx(0.0, abs=1e-12)
    assert found.drift == pytest.approx(0.2)
    assert found.drift_half == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1)])
def test_too_little_is_refused(shape: tuple[int, int]) -> None:
    """One boot, or one epoch, has no spread to tell."""
    with pytest.raises(ValueError, match="two of each"):
        components(np.zeros(shape))


def epochs_of(tier: str, *levels: tuple[float, ...]) -> list[StoredCell]:
    """Return a tier's cells, an epoch each, with one log TTFT a boot."""
    return [
        stored(list(values), cell=replace(CELL, tier=tier, context_tokens=3500 + at))
        for at, values in enumerate(levels)
    ]


def test_epochs_of_one_boot_are_paired_by_their_session() -> None:
    """A row has the epochs of one boot in order of contexts; a boot that one epoch lacks is left out.

    Of the three boots the first and the third are of one session, and keep their places in it.
    """
    first, second = epochs_of("cpu", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    second = second.model_copy(update={"boots": (second.boots[0], second.boots[2])})
    logs = layout([second, first], DEFAULT_METRICS[0])
    assert logs - logs[0, 0] == pytest.approx(np.array([[0.0, 0.3], [0.2, 0.5]]))


def test_the_table_has_a_row_a_tier_and_metric() -> None:
    """Tiers are told apart, and the drift is that of the last epoch."""
    levels = ((0.0, 0.02, 0.01), (0.2, 0.21, 0.22))
    rows = table([*epochs_of("cpu", *levels), *epochs_of("gpu", *levels)])
    assert list(rows["tier"]) == ["cpu"] * 3 + ["gpu"] * 3
    assert list(rows["metric"][:3]) == ["ttft", "speed", "decode"]
    assert rows["drift, last epoch to first"][0].startswith("+22.1%")
