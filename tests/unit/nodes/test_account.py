"""A storage's account that is read on several nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_kvcache.errors import RunError
from pytest_kvcache.serving.nodes.account import NodesAccount
from pytest_kvcache.storage import mount_delta
from pytest_kvcache.storage.account import MountReading, StorageAccount, StorageReading
from pytest_kvcache.storage.mountstats import Operation, Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require

READ = {"server_read": 100, "server_write": 50, "normal_read": 100, "normal_write": 50, "direct_read": 0,
        "direct_write": 0, "read_pages": 1, "write_pages": 1}  # fmt: skip


@dataclass(frozen=True)
class Account:
    """An account that says what it was made with."""

    reading: StorageReading
    name: str = "folder"
    require: Require = "pnfs-rdma"

    def read(self) -> StorageReading:
        """Return it."""
        return self.reading


def mount(age_s: int, *, read: int, link: str = "mlx5_0") -> MountReading:
    """Return the mount of a node."""
    reading = Reading(
        "srv:/kv",
        Path("/mnt/kv"),
        "nfs4",
        {"vers": "4.2", "proto": "rdma"},
        age_s=age_s,
        events=(1,) * 27,
        bytes=READ | {"server_read": read},
        operations={"READ": Operation(ops=read // 10)},
    )
    return MountReading(reading, (Link(link, "1", "ACTIVE", "100", "InfiniBand", {"port_rcv_data": read}),))


def account(**readings: StorageReading) -> NodesAccount:
    """Return an account that is read on these nodes."""

    def reader(own: StorageReading):  # type: ignore[no-untyped-def]
        return lambda _: own

    first: StorageAccount = Account(next(iter(readings.values())))
    return NodesAccount(first, {name: reader(own) for name, own in readings.items()})


def test_counters_of_all_mounts_are_summed() -> None:
    """Each node's kernel counts what went over its own mount: only the sum holds against what LMCache says."""
    one = StorageReading(3, 300, mount=mount(500, read=1000))
    two = StorageReading(3, 300, mount=mount(400, read=70))
    found = account(a=one, b=two).read()
    assert found.mount is not None
    assert (found.files, found.bytes) == (3, 300)
    assert found.mount.reading.bytes["server_read"] == 1070
    assert found.mount.reading.operation("READ").ops == 107
    assert [link.device for link in found.mount.links] == ["mlx5_0", "1/mlx5_0"]


def test_growth_over_two_readings_is_that_of_all_nodes() -> None:
    """Two readings are compared as those of one mount are; a mount that was made anew on one node is noticed."""
    before = account(
        a=StorageReading(1, 1, mount=mount(500, read=0)), b=StorageReading(1, 1, mount=mount(400, read=10))
    )
    after = account(
        a=StorageReading(1, 1, mount=mount(560, read=60)), b=StorageReading(1, 1, mount=mount(460, read=50))
    )
    anew = account(a=StorageReading(1, 1, mount=mount(560, read=900)), b=StorageReading(1, 1, mount=mount(5, read=50)))

    def reading(each: NodesAccount) -> Reading:
        found = each.read().mount
        assert found is not None
        return found.reading

    assert mount_delta.delta(reading(before), reading(after)).bytes["server_read"] == 100
    with pytest.raises(RunError, match="mounted anew"):
        mount_delta.delta(reading(before), reading(anew))


def test_the_node_that_sees_most_is_believed() -> None:
    """A listing may lag behind on a node that caches attributes: what one node sees is there."""
    assert account(a=StorageReading(1, 100), b=StorageReading(2, 250)).read() == StorageReading(2, 250)


def test_a_storage_that_is_full_for_one_node_is_full() -> None:
    """A quota or a mount of its own may leave one node without room."""
    found = account(a=StorageReading(1, 100, full="full"), b=StorageReading(2, 250)).read()
    assert found == StorageReading(2, 250, full="full")


def test_a_node_on_another_file_system_is_named() -> None:
    """Where one node has the folder on a mount and another has not, they do not share a storage."""
    with pytest.raises(RunError, match="node b: the tier's folder is on no NFS mount there"):
        account(a=StorageReading(1, 1, mount=mount(5, read=1)), b=StorageReading(1, 1)).read()


def test_a_node_that_cannot_read_is_named() -> None:
    """An error of the storage says on which node it was."""

    def fails(_: StorageAccount) -> StorageReading:
        raise RunError("cannot be listed", where="/mnt/kv")

    found = replace(account(a=StorageReading(1, 1)), readers={"kv-2": fails})
    with pytest.raises(RunError, match="node kv-2: /mnt/kv: cannot be listed"):
        found.read()
    assert found.name == "folder; read on kv-2"
    assert found.require == "pnfs-rdma"
