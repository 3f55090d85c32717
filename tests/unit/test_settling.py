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
        return {"lmcache-0": counters(9, 9 - int(found.pop(0) if len(found) > 1 else found[0]))}

    monkeypatch.setattr(settling, "scrape_all", scrape)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    return found


@pytest.mark.parametrize(("under_way", "left"), [([0], 0), ([3, 1, 0], 0), ([2], 2)])
def test_stores_are_waited_for(looks: list[float], under_way: list[float], left: float) -> None:
    """What is under way is waited for, and what does not end in time is told."""
    looks += under_way
    assert settling.settled({"lmcache-0": "x"})[1] == left


def test_an_interrupted_load_waits_for_nothing(looks: list[float]) -> None:
    """After a signal the rows are saved at once."""
    looks += [3, 2, 1, 0]
    assert settling.settled({"lmcache-0": "x"}, hurry=lambda: True)[1] == 3
