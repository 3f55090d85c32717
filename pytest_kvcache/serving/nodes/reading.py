"""Reads a storage's account on a node."""

from __future__ import annotations

from pytest_kvcache.storage.account import StorageAccount, StorageReading


def read(account: StorageAccount) -> StorageReading:
    """Return what the storage says on this node.

    Raises:
        RunError: The storage cannot be read here.
    """
    return account.read()
