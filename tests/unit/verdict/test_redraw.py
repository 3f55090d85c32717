"""Sessions drawn from measured boots, as `benchmarks.power.redraw` makes them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.power.redraw import drawn
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from tests.unit.verdict import make


def _rows(boots: int) -> list[dict[str, str]]:
    """Return rows of sessions drawn from boots that spread by 3 %."""
    cell = make.stored(np.random.default_rng(1).normal(0, 0.03, boots).tolist())
    return list(drawn(cell, baseline_boots=6, draws=50, shares=[0.0, 1.0], family=3, policy=Policy()))


def test_unchanged_boots_pass_and_doubled_ttft_regresses() -> None:
    """Sessions of unchanged boots hardly ever regress; those whose TTFT is doubled always do, with one boot."""
    same, doubled = _rows(20)
    assert float(same["regressed"].rstrip("%")) <= 4
    assert float(same["pass"].rstrip("%")) >= 80
    assert doubled["regressed"] == "100.0%"
    assert doubled["boots a session"] == "1.00"


def test_the_same_draws_are_taken_again() -> None:
    """The table is the same whenever the command is run."""
    assert _rows(20) == _rows(20)


def test_boots_that_make_one_session_are_refused() -> None:
    """Six boots and three more have nothing to draw: a table of them would be one session, told many times."""
    with pytest.raises(ValueError, match="9 boots make one session of 6 and 3"):
        _rows(9)


def test_what_is_judged_first_is_what_gets_worse() -> None:
    """Where TTFT is not judged, sessions are worse in what is: otherwise no change could ever be told."""
    metrics = DEFAULT_METRICS[1:]
    cell = make.stored(np.random.default_rng(1).normal(0, 0.03, 20).tolist())
    policy = Policy(metrics=metrics)
    [row] = drawn(cell, baseline_boots=6, draws=20, shares=[1.0], family=2, policy=policy)
    assert row[metrics[0].short] == "+100%"
    assert row["regressed"] == "100.0%"
