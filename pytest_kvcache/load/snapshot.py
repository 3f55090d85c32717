"""Reads a tier's storage before and after a load, with LMCache's counters around each reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_kvcache.errors import RunError
from pytest_kvcache.load.settling import settled, under_way
from pytest_kvcache.storage.account import StorageAccount, StorageReading
from pytest_kvcache.telemetry.prometheus import Counters, scrape_all


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
    first, _ = settled(metrics_urls)
    account: StorageReading | None = None
    unread = ""
    try:
        account = storage_account.read()
    except RunError as error:
        unread = str(error)
    last = scrape_all(metrics_urls)
    return Snapshot(first, account, last, under_way=under_way(last), unread=unread)
