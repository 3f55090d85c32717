"""Asks a witness, with LMCache's counters around the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage.account import Account, Look, Witness
from pytest_kvcache.telemetry.prometheus import Counters, scrape_all
from pytest_kvcache.telemetry.transfers import under_way

#: How long stores may go on after the last answer: a storage that is slower keeps its account open.
_SETTLE_S = 10.0
_POLL_S = 0.2


def look(witness: Witness, metrics_urls: Mapping[str, str]) -> Look:
    """Return what the storage holds once no store is under way, and what LMCache says of it.

    Args:
        witness: Of the tier.
        metrics_urls: Prometheus endpoints by component.
    """
    until_s = time.monotonic() + _SETTLE_S
    while _under_way(first := scrape_all(metrics_urls)) and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    account: Account | None = None
    unread = ""
    try:
        account = witness.read()
    except RunError as error:
        unread = str(error)
    last = scrape_all(metrics_urls)
    return Look(first, account, last, under_way=_under_way(last), unread=unread)


def _under_way(counters: Mapping[str, Counters]) -> float:
    return sum(under_way(own) for own in counters.values())
