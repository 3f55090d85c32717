"""What may answer reads without the storage: mount options of NFS, and other file systems."""

from __future__ import annotations

import pytest

from pytest_kvcache.storage import caches
from pytest_kvcache.storage.mount_options import nfs_version, page_cache_options, parse_options


def test_options_that_let_the_page_cache_answer() -> None:
    """A mount says what may serve a read without the server; one without sharing and caching says nothing."""
    found = page_cache_options(parse_options("rw,fsc,vers=4.2"))
    assert [line.partition(":")[0] for line in found] == [
        "fsc",
        "no nosharecache",
        "no noac or actimeo=0",
        "lookupcache=all",
    ]
    assert page_cache_options(parse_options("rw,noac,nosharecache,lookupcache=none")) == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("rw", "pages stay valid"),
        ("rw,noac", ""),
        ("rw,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0", ""),
        ("rw,actimeo=0", ""),
        ("rw,acregmax=0,acdirmax=0", ""),
        ("rw,acregmin=3,acregmax=0,acdirmin=30,acdirmax=0", ""),
        ("rw,acregmin=0", "pages stay valid"),
        ("rw,acdirmax=0", "pages stay valid"),
        ("rw,acregmax=0", "attributes of folders"),
        ("rw,actimeo=600", "pages stay valid"),
    ],
)
def test_options_that_cache_no_attributes(options: str, kept: str) -> None:
    """`noac` and longest times of zero, as the kernel shows `actimeo=0`, ask the server for attributes each time."""
    told = page_cache_options(parse_options(f"{options},nosharecache,lookupcache=none"))
    assert (bool(told), kept in "".join(told)) == (bool(kept), True)


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ("vers=4.2", (4, 2)),
        ("vers=4,minorversion=1", (4, 1)),
        ("vers=3", (3, 0)),
        ("rw", (0, 0)),
        ("vers=x.\u00b2", (0, 0)),
    ],
)
def test_versions(options: str, version: tuple[int, int]) -> None:
    """The version is read as old and new kernels show it; what is no number is none."""
    assert nfs_version(parse_options(options)) == version


NETWORK = (
    "lustre wekafs gpfs mmfs beegfs ceph fuse.ceph fuse.ceph-fuse cifs smb3 afs gfs2 ocfs2 orangefs panfs "
    "fuse.glusterfs fuse.juicefs fuse.sshfs 9p virtiofs"
)


@pytest.mark.parametrize("fstype", NETWORK.split(" "))
def test_no_network_file_system_is_called_a_local_one(fstype: str) -> None:
    """Reads of a network file system may come from a cache of this client, or of the host that serves it."""
    told = caches.of(fstype)
    assert "local file system" not in told
    assert any(word in told for word in ("network file system", "host"))
    assert "cache" in told


@pytest.mark.parametrize(
    ("fstype", "told"),
    [
        ("gpfs", "pagepool"),
        ("beegfs", "tuneFileCacheType"),
        ("wekafs", "forcedirect"),
        ("zfs", "ARC"),
        ("tmpfs", "memory"),
        ("ramfs", "memory"),
        ("autofs", "nothing is mounted"),
        ("overlay", "below it"),
        ("fuse.somebodys", "program that serves it"),
        ("fuse", "program that serves it"),
        ("newfs", "not known here"),
    ],
)
def test_what_is_told_of_a_file_system(fstype: str, told: str) -> None:
    """Caches of a kind of their own are named; an unknown type is taken for neither local nor remote."""
    assert told in caches.of(fstype)
    assert "local file system" not in caches.of(fstype)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "f2fs", "fuseblk"])
def test_file_systems_of_a_local_disk(fstype: str) -> None:
    """Only those that are known to be of a local disk are called local."""
    assert caches.of(fstype) == "reads may come from the page cache, as on any local file system"
