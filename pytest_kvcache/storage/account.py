"""What a witness said at one time, and what LMCache said around it (data only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require
from pytest_kvcache.telemetry.prometheus import Counters


@dataclass(frozen=True)
class MountAccount:
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
class Account:
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
    mount: MountAccount | None = None


class Witness(Protocol):
    """Reads a tier's storage. It is asked before and after a load, never while one is running."""

    @property
    def name(self) -> str:
        """Who speaks, in a few words for a report."""

    @property
    def require(self) -> Require:
        """What the tier requires of a mount; "none" where it is on none."""

    def read(self) -> Account:
        """Return what is there now.

        Raises:
            RunError: The storage does not say.
        """


@dataclass(frozen=True)
class Look:
    """A storage and LMCache's counters, read together when nothing was under way.

    What is stored between the readings is in `last` and not in `first`, so that `first` is never more than `account`
    can have, and `last` never less.

    Args:
        first: Counters by component, read before the account.
        account: None where the storage did not say.
        last: Counters by component, read after it.
        under_way: Stores that did not end within the time that was waited.
        unread: Why there is no account.
    """

    first: Mapping[str, Counters] = field(default_factory=dict)
    account: Account | None = None
    last: Mapping[str, Counters] = field(default_factory=dict)
    under_way: float = 0.0
    unread: str = ""
