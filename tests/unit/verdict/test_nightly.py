"""Sessions drawn from the boots of rounds, as `benchmarks.power.nightly` and `redraw` make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.power import nightly, redraw
from benchmarks.power.nightly import CPU, GPU, PNFS, SLOWED, Taken
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.paired import BootPair
from tests.unit.verdict import make

#: TTFT of each kind over that of gpu.
RATIOS = {GPU: 1.0, PNFS: 0.3, CPU: 0.5, SLOWED: 1.0}


def _taken(rounds: int, *, hours: float = 0.3, sd: float = 0.03, without: tuple[int, str] | None = None) -> list[Taken]:
    """Return boots of rounds whose hours move all tiers, and whose boots spread besides (sd of log TTFT)."""
    random = np.random.default_rng(1)
    found = []
    for number in range(rounds):
        hour = random.normal(0, hours)
        for kind in nightly.order(number):
            effect = np.log(RATIOS[kind]) + hour + random.normal(0, sd)
            if (number, kind) != without:
                found.append(Taken(number, kind, make.boot({"ttft_geomean_s": effect})))
    return found


def test_rounds_follow_each_other_as_a_b_b_a() -> None:
    """Boots of gpu and of pnfs are neighbours in every round, and every second round goes backwards."""
    forwards, backwards = ([kind for kind in nightly.order(at) if kind != SLOWED] for at in (0, 1))
    assert forwards == backwards[::-1]
    assert forwards[:2] == [GPU, PNFS]


def test_gains_are_seen_whatever_the_hour_does() -> None:
    """Hours that move TTFT by a third raise no alarm, and a tier that brings nothing is caught in every session."""
    told = nightly.summary(nightly.gain_sessions(_taken(10), policy=Policy())).set_index("gain")
    real, none = told.loc["pnfs over gpu, ttft at most 0.6"], told.loc["pnfs without gain over gpu, ttft at most 0.6"]
    assert (real["sessions"], real["regressed"]) == (18, 0)
    assert real["pass"] > 0
    assert (none["sessions"], none["regressed"]) == (10, 10)


def test_quiet_hours_decide_with_two_pairs() -> None:
    """Where tiers' baselines spread little, every gain passes with two pairs."""
    told = nightly.gain_sessions(_taken(10, hours=0.02), policy=Policy())
    assert set(told.loc[~told["gain"].str.startswith(SLOWED), "status"]) == {"pass"}


def test_a_round_that_is_not_whole_makes_no_session() -> None:
    """A run that was ended within its last round is told by the rounds before."""
    told = nightly.gain_sessions(_taken(5, without=(4, CPU)), policy=Policy())
    assert "3+4" not in set(told["rounds"])
    assert "2+3" in set(told["rounds"])


def test_rounds_that_leave_nothing_for_baselines_are_refused() -> None:
    """Two rounds are one session without a baseline."""
    with pytest.raises(ValueError, match="tell no spread"):
        nightly.gain_sessions(_taken(2), policy=Policy())


def test_boots_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A line a boot; a figure that a tier lacks is none of its boot."""
    path = tmp_path / "boots.csv"
    assert nightly.read(path) == []
    rows = [
        {"round": 0, "kind": GPU, "began": "10:00:00", "minutes": 2.0, "ttft_geomean_s": 0.7},
        {
            "round": 0,
            "kind": PNFS,
            "began": "10:02:00",
            "minutes": 2.0,
            "ttft_geomean_s": 0.2,
            "ttft_hit_over_cold": 0.1,
        },
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    gpu, pnfs = nightly.read(path)
    assert (gpu.number, gpu.kind, gpu.boot.figures) == (0, GPU, {"ttft_geomean_s": 0.7})
    assert pnfs.boot.figures == {"ttft_geomean_s": 0.2, "ttft_hit_over_cold": 0.1}


def _pairs(count: int, sd: float) -> list[BootPair]:
    random = np.random.default_rng(2)
    return [BootPair(*(make.boot(random.normal(0, sd)) for _ in range(2))) for _ in range(count)]


def test_drawn_pairs_tell_what_doubled_and_nothing_else() -> None:
    """Pairs of neighbours hardly ever say that B is worse where nothing changed, and always where TTFT doubled."""
    same, doubled = redraw.against(_pairs(10, 0.02), draws=50, shares=[0.0, 1.0], family=3, policy=Policy())
    assert float(same["regressed"].rstrip("%")) <= 4
    assert doubled["regressed"] == "100.0%"


def test_pairs_of_one_session_are_refused() -> None:
    """Six pairs have nothing to draw."""
    with pytest.raises(ValueError, match="6 pairs make one session of 6"):
        list(redraw.against(_pairs(6, 0.02), draws=5, shares=[0.0], family=3, policy=Policy()))
