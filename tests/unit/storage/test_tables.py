"""Tables of the kernel that no sample shows: hostile names, old and new kernels, and what a future one may add."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_kvcache.storage import mountstats
from pytest_kvcache.storage.mounts import mount_of

ROOT = b"21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
OTHER_ENDS = b"a\rb\x0bc\xe2\x80\xa8d\xc2\x85e"
#: Lines of mountinfo: what stands for the mount point in the table, its true name, and the rest of the line; then file
#: system and source.
MOUNTS: dict[str, tuple[bytes, bytes, bytes, str, bytes]] = {
    "escapes of all kinds": (rb"a\040b\011c\012d\134e\043f", b"a b\tc\nd\\e#f", b"nfs4 srv:/x rw", "nfs4", b"srv:/x"),
    "a backslash before digits": (rb"a\134040b", rb"a\040b", b"ext4 /dev/x rw", "ext4", b"/dev/x"),
    "bytes that are no UTF-8": (b"k\xff\xfev", b"k\xff\xfev", b"nfs4 s\xe9rv:/\xff rw", "nfs4", b"s\xe9rv:/\xff"),
    "octal bytes beyond ASCII": (rb"k\303\244", b"k\xc3\xa4", b"nfs4 srv:/x rw", "nfs4", b"srv:/x"),
    "a source with escapes": (b"kv", b"kv", rb"nfs4 srv:/my\040export\134x rw", "nfs4", b"srv:/my export\\x"),
    "a source with a dash": (b"kv", b"kv", rb"nfs4 srv:/a\040-\040b rw", "nfs4", b"srv:/a - b"),
    "an empty source": (b"kv", b"kv", b"tmpfs  rw", "tmpfs", b""),
    "a source of IPv6 with a zone": (
        b"kv", b"kv", b"nfs4 [fe80::1%eth0]:/x rw,addr=fe80::1%eth0,proto=rdma6", "nfs4", b"[fe80::1%eth0]:/x",
    ),
    "line ends of others": (OTHER_ENDS, OTHER_ENDS, b"xfs /dev/y rw", "xfs", b"/dev/y"),
    "a point with a dash in its name": (rb"a\040-\040b", b"a - b", b"nfs4 srv:/x rw", "nfs4", b"srv:/x"),
    "a file system with a subtype": (b"kv", b"kv", b"fuse.sshfs me@host:/x rw,user_id=0", "fuse.sshfs", b"me@host:/x"),
}  # fmt: skip
OPTIONAL = (b"", b"shared:7 ", b"shared:7 master:3 propagate_from:2 ", b"unbindable ")


@pytest.mark.parametrize("optional", OPTIONAL, ids=repr)
@pytest.mark.parametrize("name", MOUNTS)
def test_names_of_mounts(tmp_path: Path, name: str, optional: bytes) -> None:
    """Every escape, and every byte that is none, comes out as the name that programs know."""
    written, true, rest, fstype, source = MOUNTS[name]
    base = os.fsencode(tmp_path)
    proc = tmp_path / "proc"
    proc.mkdir()
    line = b"40 21 0:50 / " + base + b"/" + written + b" rw,noatime " + optional + b"- " + rest + b"\n"
    (proc / "mountinfo").write_bytes(ROOT + line + b"not a line\n\n")
    found = mount_of(Path(os.fsdecode(base + b"/" + true)) / "sub", proc=proc)
    assert os.fsencode(found.point) == base + b"/" + true
    assert (found.fstype, os.fsencode(found.source)) == (fstype, source)
    if "zone" in name:
        assert (found.server, found.is_rdma) == ("fe80::1%eth0", True)


COUNTS = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
BYTES, OLD = "1 2 3 4 500 600 7 8", "10 11 1 2000 3000 4 5 6"
#: What kernels print: head, events, bytes, transport, numbers of an operation. The sources of these lines are
#: fs/nfs/super.c, net/sunrpc/stats.c and the transports' own print_stats of the named versions.
TCP = "1 1 0 11 90 90 0 90 0"
KERNELS = {
    "4.18": ("statvers=1.1", f"{COUNTS} 0 5 7", BYTES, f"tcp 832 {TCP} 2 0 0", OLD),
    "5.3": ("statvers=1.1", f"{COUNTS} 0 5 7", BYTES, f"tcp 832 {TCP} 2 0 0", f"{OLD} 2"),
    "6.12": ("statvers=1.1", f"{COUNTS} 0 5 7", BYTES, f"tcp 0 {TCP} 2 0 0", f"{OLD} 2"),
    "2.6.32": ("statvers=1.0", COUNTS, BYTES, f"tcp 832 {TCP}", OLD),
    "one to come": (
        "statvers=1.2 id=7",
        f"{COUNTS} 0 5 7 9 n/a",
        f"{BYTES} 9 (direct)",
        f"tcp 0 {TCP} 2 0 0 tls=1",
        f"{OLD} 2 9 9",
    ),
}


def stats(point: bytes, *parts: str, more: str = "") -> bytes:
    """Return the block of a mount."""
    statvers, events, counts, transport, operation = (part.encode() for part in parts)
    return b"".join(
        [
            b"device srv:/x mounted on ", point, b" with fstype nfs4 ", statvers, b"\n",
            b"\topts:\trw,vers=4.2,rsize=1048576,wsize=1048576,proto=tcp,sec=sys,local_lock=none\n",
            b"\tage:\t77\n\tcaps:\tcaps=0xffff,wtmult=512\n",
            b"\tnfsv4:\tbm0=0xfdffbfff,bm1=0xf9be3e,acl=0x3,sessions,pnfs=LAYOUT_FLEX_FILES,lease_time=90\n",
            b"\tsec:\tflavor=1,pseudoflavor=1\n\tevents:\t", events, b"\n\tbytes:\t", counts, b"\n",
            more.encode(), b"\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)\n\txprt:\t", transport, b"\n",
            b"\tper-op statistics\n\t        NULL: 1 1 0 44 24 0 0 0\n\t        READ: ", operation, b"\n",
            b"\t          71: 1 1 0 44 24 0 0 0\n\t   READ_PLUS: 3 3 0 44 24 0 0 0\n\n",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("more", ["", "\tnew-line:\n\t: \n\tfuture: a b c\n", "\txprt:\n"])
def test_mountstats_of_kernels_old_and_new(kernel: str, more: str) -> None:
    """Counters that a kernel has are read, those that it lacks are 0, and what nobody knows yet stops nothing."""
    table = stats(b"/mnt/kv", *KERNELS[kernel], more=more) + stats(b"/mnt/other", *KERNELS["5.3"])
    first, second = mountstats.parse(os.fsdecode(table))
    assert (str(first.point), str(second.point)) == ("/mnt/kv", "/mnt/other")
    assert (first.version, first.layout, first.age_s) == ((4, 2), "LAYOUT_FLEX_FILES", 77)
    assert (first.bytes["server_read"], first.bytes["server_write"]) == (500, 600)
    assert (first.pnfs_reads, first.pnfs_writes) == ((0, 0) if kernel == "2.6.32" else (5, 7))
    read = first.operation("READ")
    assert (read.ops, read.bytes_received, read.execute_ms) == (10, 3000, 6)
    assert read.errors == (0 if kernel in {"4.18", "2.6.32"} else 2)
    assert first.transports[-1].kind == "tcp"
    assert first.transports[-1].sends == 90
    assert first.operation("READ_PLUS").ops == 3


@pytest.mark.parametrize(
    "point", [b"/mnt/a\\040b", b"/mnt/k\xff", b"/mnt/a\rb", b"/mnt/\xe2\x80\xa8", b"/mnt/mounted\\040on"], ids=repr
)
def test_names_in_mountstats(point: bytes) -> None:
    """Names are those of the mount table, whatever their bytes, and the block of the next mount is its own."""
    table = stats(point, *KERNELS["6.12"]) + b"device proc mounted on /proc with fstype proc\n"
    (found,) = mountstats.parse(os.fsdecode(table))
    assert os.fsencode(found.point) == point.replace(b"\\040", b" ")
    assert found.operation("READ").ops == 10


@pytest.mark.parametrize("cut", range(0, 900, 7))
def test_a_table_that_is_cut_stops_nothing(cut: int) -> None:
    """However much of a table is there, what is whole of it is read and nothing raises."""
    table = stats(b"/mnt/kv", *KERNELS["6.12"])[:cut]
    assert len(mountstats.parse(os.fsdecode(table))) <= 1
