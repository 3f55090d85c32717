"""Counters of LMCache that no store under way will still change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pytest_kvcache.telemetry.prometheus import Counters, scrape_all
from pytest_kvcache.telemetry.transfers import stores_under_way

#: Longest wait for the next store to end, and for all of them (s); a slower storage is read while stores are under way.
_NEXT_S, _ALL_S = 10.0, 120.0
_POLL_S = 0.2


def settled(
    metrics_urls: Mapping[str, str], *, hurry: Callable[[], bool] = lambda: False, lag_s: float = 0.0
) -> tuple[dict[str, Counters], float]:
    """Return the counters by component once no store is under way, and how many stores did not end.

    They are waited for as long as one of them ends every 10 s, 2 minutes in all.

    Args:
        metrics_urls: Prometheus endpoints by component.
        hurry: Returns whether to wait no longer.
        lag_s: How long counters may lag behind what they count (s): they are read so much later.
    """
    lagged_s = time.monotonic() + lag_s
    while time.monotonic() < lagged_s and not hurry():
        time.sleep(min(_POLL_S, max(0.0, lagged_s - time.monotonic())))
    start_s = moved_s = time.monotonic()
    found = scrape_all(metrics_urls)
    while (left := under_way(found)) and not hurry():
        time.sleep(_POLL_S)
        found, now_s = scrape_all(metrics_urls), time.monotonic()
        if under_way(found) < left:
            moved_s = now_s
        if now_s > min(moved_s + _NEXT_S, start_s + _ALL_S):
            break
    return found, under_way(found)


def under_way(counters: Mapping[str, Counters]) -> float:
    """Return how many stores have not ended, or are not counted yet, over all components."""
    return sum(stores_under_way(own) for own in counters.values())
