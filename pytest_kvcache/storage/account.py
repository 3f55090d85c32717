"""What a tier's storage says of itself at one time: its files, its server's counters, its mount's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require


@dataclass(frozen=True)
class MountReading:
    """What the kernel counts of an NFS mount and of the ways to it.

    Args:
        reading: The mount's own counters.
        links: RDMA links and theirs.
        connections: Kind and address of all RPC connections, those to data servers among them.
    """

    reading: Reading
    links: tuple[Link, ...] = ()
    connections: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class StorageReading:
    """A storage at one time.

    Args:
        files: Of this boot that are there.
        bytes: That they hold.
        served_bytes: That the storage's own server has moved since its start, both ways; None where it counts nothing.
        mount: Counters of the mount, None where it has none.
    """

    files: int
    bytes: int
    served_bytes: float | None = None
    mount: MountReading | None = None


class StorageAccount(Protocol):
    """Reads a tier's storage. It is asked before and after a load, never while one is running."""

    @property
    def name(self) -> str:
        """Who speaks, in a few words for a report."""

    @property
    def require(self) -> Require:
        """What the tier requires of a mount; "none" where it is on none."""

    def read(self) -> StorageReading:
        """Return what is there now.

        Raises:
            RunError: The storage does not say.
        """
