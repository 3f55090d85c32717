"""Counters are read when no store is under way any more, and for no longer than is bearable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_kvcache.load import settling
from pytest_kvcache.telemetry.prometheus import Counters

_L2 = "lmcache_mp_l2_store"


def counters(begun: int, ended: int) -> Counters:
    """Return counters of an LMCache server that has begun and ended these stores."""
    return {f"{_L2}_submitted_requests_total": begun, f"{_L2}_completed_requests_total": ended}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how many stores are under way at each look, the last of them from then on; time flies."""
    found: list[float] = []
    clock: Iterator[int] = iter(range(10_000))

    def scrape(_urls: object) -> dict[str, Counters]:
        return {"lmcache-0": counters(1000, 1000 - int(found.pop(0) if len(found) > 1 else found[0]))}

    monkeypatch.setattr(settling, "scrape_all", scrape)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    return found


SLOW = [each for left in range(9, 0, -1) for each in [left] * 5]


@pytest.mark.parametrize(
    ("under_way", "left"),
    [([0], 0), ([3, 1, 0], 0), ([2], 2), ([*SLOW, 0], 0), ([*SLOW, *[1] * 99, 0], 1), ([9] * 8 * 20 + [0], 9)],
    ids=["none", "soon", "never", "slowly", "the last never", "too late"],
)
def test_stores_are_waited_for(looks: list[float], under_way: list[float], left: float) -> None:
    """What is under way is waited for as long as stores end one after the other, and what does not end is told."""
    looks += under_way
    assert settling.settled({"lmcache-0": "x"})[1] == left


def test_a_storage_that_is_slow_for_ever_is_waited_for_two_minutes(looks: list[float]) -> None:
    """Stores that go on ending, without an end, are read while they are under way."""
    looks += [float(left) for left in range(1000, 0, -1)]
    assert settling.settled({"lmcache-0": "x"})[1] > 800


def test_an_interrupted_load_waits_for_nothing(looks: list[float]) -> None:
    """After a signal the rows are saved at once."""
    looks += [3, 2, 1, 0]
    assert settling.settled({"lmcache-0": "x"}, hurry=lambda: True)[1] == 3
