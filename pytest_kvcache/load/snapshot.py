"""Reads a tier's storage before and after a load, with LMCache's counters around each reading."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage.account import StorageAccount, StorageReading
from pytest_kvcache.telemetry.prometheus import Counters, scrape_all
from pytest_kvcache.telemetry.transfers import stores_under_way

#: Longest wait for stores to end after the last answer (s); a slower storage is read while stores are under way.
_SETTLE_S = 10.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Snapshot:
    """What a storage and LMCache's counters say, read together when no store was under way.

    What is stored between the readings is in `last` and not in `first`, so that `first` never counts more than
    `account` can have, and `last` never less.

    Args:
        first: Counters by component, read before the account.
        account: What the storage says of itself; None where it could not be read.
        last: Counters by component, read after the account.
        under_way: Number of stores that did not end within the time that was waited.
        unread: Why there is no account, "" where there is one.
    """

    first: Mapping[str, Counters] = field(default_factory=dict)
    account: StorageReading | None = None
    last: Mapping[str, Counters] = field(default_factory=dict)
    under_way: float = 0.0
    unread: str = ""


def take_snapshot(storage_account: StorageAccount, metrics_urls: Mapping[str, str]) -> Snapshot:
    """Return what the storage holds once no store is under way, and what LMCache says of it.

    Args:
        storage_account: Account of the tier's storage.
        metrics_urls: Prometheus endpoints by component.
    """
    until_s = time.monotonic() + _SETTLE_S
    while _under_way(first := scrape_all(metrics_urls)) and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    account: StorageReading | None = None
    unread = ""
    try:
        account = storage_account.read()
    except RunError as error:
        unread = str(error)
    last = scrape_all(metrics_urls)
    return Snapshot(first, account, last, under_way=_under_way(last), unread=unread)


def _under_way(counters: Mapping[str, Counters]) -> float:
    return sum(stores_under_way(own) for own in counters.values())
