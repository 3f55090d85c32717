"""The storage's own account where several nodes use it: each node's kernel counts what went over its own mount."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage.account import MountReading, StorageAccount, StorageReading
from pytest_kvcache.storage.mountstats import Operation, Reading
from pytest_kvcache.storage.requirement import Require


@dataclass(frozen=True)
class NodesAccount:
    """A storage that is read on each node.

    Args:
        account: What is read, as it is on one machine.
        readers: By the node's name, what reads the account there.
    """

    account: StorageAccount
    readers: Mapping[str, Callable[[StorageAccount], StorageReading]]

    @property
    def name(self) -> str:
        """What is read, and where."""
        return f"{self.account.name}; read on {', '.join(self.readers)}"

    @property
    def require(self) -> Require:
        """What the tier requires of a mount."""
        return self.account.require

    def read(self) -> StorageReading:
        """Return what the storage says: contents as the node sees them that sees most, counters of all mounts.

        Raises:
            RunError: A node does not see the storage, or has it on a mount where another has it on none.
        """
        found: dict[str, StorageReading] = {}
        for node, read in self.readers.items():
            try:
                found[node] = read(self.account)
            except RunError as error:
                raise RunError(error.what, where=f"node {node}: {error.where}", todo=error.todo) from None
        readings = list(found.values())
        most = max(readings, key=lambda each: each.bytes)
        mounts = [each.mount for each in readings if each.mount is not None]
        if mounts and len(mounts) < len(readings):
            without = [node for node, each in found.items() if each.mount is None]
            raise RunError(
                "the tier's folder is on no NFS mount there, and on one on other nodes",
                where=f"node {', '.join(without)}",
                todo="mount the same file system on all nodes",
            )
        full = next(filter(None, (each.full for each in readings)), "")
        return replace(most, mount=summed(mounts) if mounts else None, full=full)


def summed(mounts: Sequence[MountReading]) -> MountReading:
    """Return the counters of several clients' mounts of one storage as those of one mount.

    Options are the first one's: that mounts are alike is looked at before a boot.
    """
    first = mounts[0]
    links = tuple(
        replace(link, device=f"{number}/{link.device}") if number else link
        for number, each in enumerate(mounts)
        for link in each.links
    )
    connections = tuple(dict.fromkeys(one for each in mounts for one in each.connections))
    return replace(first, reading=_one([each.reading for each in mounts]), links=links, connections=connections)


def _one(readings: Sequence[Reading]) -> Reading:
    first = readings[0]
    names = dict.fromkeys(name for each in readings for name in each.operations)
    return replace(
        first,
        # The youngest: where one of them was mounted anew between two readings, its age tells it.
        age_s=min(each.age_s for each in readings),
        events=tuple(map(sum, zip(*(each.events for each in readings), strict=False))),
        bytes={name: sum(each.bytes.get(name, 0) for each in readings) for name in first.bytes},
        transports=tuple(one for each in readings for one in each.transports),
        operations={name: _operation([each.operation(name) for each in readings]) for name in names},
        neighbours=tuple(one for each in readings for one in each.neighbours),
    )


def _operation(each: Sequence[Operation]) -> Operation:
    names = list(vars(each[0]))
    return Operation(**{name: sum(getattr(one, name) for one in each) for name in names})
