"""What a tier's storage says of itself at one time: its files, the counters of its server and those of its mount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require

#: What a person does about a storage that is full.
ROOM = "free space, raise the quota, or set the tier's path to a larger file system"


@dataclass(frozen=True)
class MountReading:
    """What the kernel counts of an NFS mount and of the connections to its servers.

    Args:
        reading: The mount's own counters.
        links: RDMA links with their counters.
        connections: Kind and address of all RPC connections, including those to data servers.
        server: Address of the mount's own server, "" where it is not known.
        automounter: The automounter's place that it is mounted on, in words; "" where nobody ends it when it is idle.
    """

    reading: Reading
    links: tuple[Link, ...] = ()
    connections: tuple[tuple[str, str], ...] = ()
    server: str = ""
    automounter: str = ""


@dataclass(frozen=True)
class StorageReading:
    """What a storage says at one time.

    Args:
        files: Number of files, or objects, of this boot.
        bytes: Bytes that these files hold.
        served_bytes: Bytes that the storage's own server has moved since its start, both ways; None where no server
            counts.
        mount: Counters of the mount, None where it has none.
        full: That nothing more fits in, in words; "" where there is room, or nothing tells.
    """

    files: int
    bytes: int
    served_bytes: float | None = None
    mount: MountReading | None = None
    full: str = ""


class StorageAccount(Protocol):
    """Reads a tier's storage. It is asked before and after a load, never while one is running."""

    @property
    def name(self) -> str:
        """What is read, in a few words for a report."""

    @property
    def require(self) -> Require:
        """What the tier requires of a mount; "none" where the tier is on no mount."""

    def read(self) -> StorageReading:
        """Return what the storage says now.

        Raises:
            RunError: The storage cannot be read.
        """
