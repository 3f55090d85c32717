"""What real NFS mounts print, over versions, transports and layouts, and what is read off it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage import mounts, mountstats, rdma
from pytest_kvcache.storage.mount_delta import delta
from pytest_kvcache.storage.mount_options import nfs_version, parse_options
from pytest_kvcache.storage.mounts import mount_of
from pytest_kvcache.storage.mountstats import Operation, Reading, parse
from pytest_kvcache.storage.rdma import Carried, Link

SAMPLES = Path(__file__).parents[1] / "data" / "pnfs"


@dataclass(frozen=True)
class Expected:
    """What is known of a sample from how it was captured."""

    version: tuple[int, int]
    proto: str
    layout: str = ""
    point: str = "/mnt/kv"
    #: Of the reading after the load.
    pnfs: tuple[int, int] = (0, 0)
    server: tuple[int, int] = (0, 0)
    direct: tuple[int, int] = (0, 0)
    read: int = 0
    write: int = 0
    layoutget: int = 0
    age_s: int = 0


FLEX, BLOCK = "LAYOUT_FLEX_FILES", "LAYOUT_BLOCK_VOLUME"
M = 100 << 20
AFTER = {
    "plain-v3-rdma.after": Expected((3, 0), "rdma", server=(M // 2, M // 2), read=100, write=100, age_s=1),
    "plain-v4.0-tcp.after": Expected((4, 0), "tcp", server=(M // 2, M // 2), read=100, write=100, age_s=1),
    "plain-v4.2-tcp.after": Expected((4, 2), "tcp", server=(M // 2, M // 2), read=100, write=100, age_s=1),
    "plain-rdma-quiet.after": Expected((4, 2), "rdma", server=(245891072, 2 * M), read=471, write=400, age_s=22),
    "pnfs-block-rdma-quiet.after": Expected(
        (4, 2), "rdma", BLOCK, pnfs=(400, 400), server=(2 * M, 2 * M), layoutget=2, age_s=16
    ),
    "pnfs-block-rdma-tcg": Expected(
        (4, 2), "rdma", BLOCK, "/mnt/rdma", pnfs=(200, 200), server=(M, M), layoutget=2, age_s=6
    ),
    "pnfs-flexfiles-rdma.after": Expected(
        (4, 2), "rdma", FLEX, pnfs=(400, 400), server=(2 * M, 2 * M), read=400, write=400, layoutget=2, age_s=18
    ),
    "pnfs-flexfiles-rdma-tcg.after": Expected(
        (4, 2), "rdma", FLEX, pnfs=(200, 200), server=(M, M), read=200, write=200, layoutget=2, age_s=20
    ),
    "pnfs-flexfiles-tcp-v41.after": Expected(
        (4, 1), "tcp", FLEX, pnfs=(100, 100), server=(M // 2, M // 2), read=100, write=100, layoutget=2, age_s=3
    ),
    "pnfs-scsi-fallback-rdma.after": Expected(
        (4, 2), "rdma", "LAYOUT_SCSI", server=(2 * M, M), read=400, write=200, layoutget=2, age_s=9
    ),
    "direct-io-flexfiles-rdma": Expected(
        (4, 2), "rdma", FLEX, pnfs=(82, 40), server=(40 << 20, 20 << 20), direct=(21 << 20, 20 << 20), read=82,
        write=40, layoutget=3, age_s=1,
    ),
}  # fmt: skip
PAIRS = sorted(p.name.removesuffix(".before.mountstats") for p in SAMPLES.glob("*.before.mountstats"))


def reading(name: str) -> Reading:
    """Return the one NFS mount of a sample."""
    (found,) = parse((SAMPLES / f"{name}.mountstats").read_text())
    return found


def test_every_sample_is_among_these_tests() -> None:
    """No captured mountstats is left out: each is one of those with a load, a `before`, or the one without NFS."""
    names = {p.name.removesuffix(".mountstats") for p in SAMPLES.glob("*.mountstats")}
    assert names == {*AFTER, *(f"{pair}.before" for pair in PAIRS), "none"}
    assert len(PAIRS) == 9


def test_a_machine_without_nfs() -> None:
    """Other file systems are no NFS mounts, nfsd's own among them."""
    assert parse((SAMPLES / "none.mountstats").read_text()) == []


@pytest.mark.parametrize("name", AFTER)
def test_properties_and_counters(name: str) -> None:
    """Version, transport, layout, sizes, security, bytes, operations and layout I/O are those of the capture."""
    found, expected = reading(name), AFTER[name]
    assert (found.version, found.proto, found.layout) == (expected.version, expected.proto, expected.layout)
    assert found.fstype == ("nfs" if expected.version == (3, 0) else "nfs4")
    assert (found.point, found.age_s) == (Path(expected.point), expected.age_s)
    assert (found.rsize, found.wsize, found.nconnect, found.flavor) == (524288, 524288, 1, "sys")
    assert [t.kind for t in found.transports] == [expected.proto]
    assert (found.pnfs_reads, found.pnfs_writes) == expected.pnfs
    assert (found.bytes["server_read"], found.bytes["server_write"]) == expected.server
    assert (found.bytes["direct_read"], found.bytes["direct_write"]) == expected.direct
    counts = [found.operation(op).ops for op in ("READ", "WRITE", "LAYOUTGET")]
    assert counts == [expected.read, expected.write, expected.layoutget]


@pytest.mark.parametrize("pair", PAIRS)
def test_differences_of_two_readings(pair: str) -> None:
    """Before the load all is still; the difference is what the load did, and only what it did."""
    before = reading(f"{pair}.before")
    after = reading(f"{pair}.after")
    assert (before.pnfs_reads, before.pnfs_writes, before.operation("READ").ops) == (0, 0, 0)
    found, expected = delta(before, after), AFTER[f"{pair}.after"]
    assert (found.pnfs_reads, found.pnfs_writes) == expected.pnfs
    assert (found.bytes["server_read"], found.bytes["server_write"]) == expected.server
    assert found.operation("WRITE").ops == expected.write
    assert found.operation("LAYOUTGET").ops == expected.layoutget
    assert found.seconds == after.age_s - before.age_s
    assert "READ_PLUS" not in found.operations
    assert (sum(t.reply_bytes for t in after.transports) > 0) is (expected.proto == "rdma")


def test_the_fallback_to_the_metadata_server() -> None:
    """A layout that is granted and cannot be used leaves its trace: GETDEVICEINFO errors, no I/O by the layout."""
    found = delta(reading("pnfs-scsi-fallback-rdma.before"), reading("pnfs-scsi-fallback-rdma.after"))
    assert found.operation("GETDEVICEINFO") == Operation(2, 2, 0, 304, 176, 0, 0, 0, 2)
    assert (found.pnfs_reads, found.pnfs_writes) == (0, 0)


def test_data_of_flexfiles_is_not_in_the_mounts_own_transport() -> None:
    """The mount's transport carries the metadata only: data servers have transports that mountstats does not list."""
    before, after = (reading(f"pnfs-flexfiles-rdma.{when}").transports[0] for when in ("before", "after"))
    assert (before.sends, after.sends) == (18, 29)
    assert (after.read_chunks, after.reply_bytes) == (0, 1904)
    plain = reading("plain-v3-rdma.after")
    assert plain.transports[0].reply_bytes == plain.bytes["server_read"]
    assert plain.transports[0].read_chunks > plain.operation("WRITE").ops


@pytest.mark.parametrize("name", ["pnfs-flexfiles-rdma", "plain-v4.2-tcp"])
def test_a_remount_is_noticed(name: str) -> None:
    """Counters that went back are those of another mount: no difference is made of them."""
    with pytest.raises(RunError, match="mounted anew"):
        delta(reading(f"{name}.after"), reading(f"{name}.before"))


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.mounts")), ids=lambda p: p.stem)
def test_the_mount_table_says_the_same(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount that holds a folder is found in the kernel's table, with the counters that belong to it."""
    lines = [line.split() for line in path.read_text().splitlines()]
    (tmp_path / "mountinfo").write_text(
        "".join(
            f"{i} 1 0:{i} / {point} rw - {kind} {src} {opts}\n" for i, (src, point, kind, opts, *_) in enumerate(lines)
        )
    )
    name = next(n for n in AFTER if n.removesuffix(".after") == path.stem)
    (tmp_path / "mountstats").write_text((SAMPLES / f"{name}.mountstats").read_text())
    monkeypatch.setattr(mounts, "PROC", tmp_path)
    expected = AFTER[name]
    mount = mount_of(Path(expected.point) / "below")
    assert mount.nfs == reading(name)
    assert (mount.version, mount.pnfs) == (expected.version, expected.layout)
    # Only this table has the server's address: mountstats shows the options without it.
    assert mount.server == mount.source.partition(":")[0]
    assert mount.nfs is not None
    assert "addr" not in mount.nfs.options
    assert mount_of(Path("/dev/shm/x")).fstype == "tmpfs"


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.nfsstat-m")), ids=lambda p: p.stem)
def test_nfsstat_says_the_same(path: Path) -> None:
    """Options as `nfsstat -m` prints them give the same version, transport and sizes as mountstats."""
    head, flags = path.read_text().splitlines()[:2]
    options = parse_options(flags.partition("Flags:")[2])
    found = reading(next(n for n in AFTER if n.removesuffix(".after") == path.stem))
    assert head == f"{found.point} from {found.source}"
    assert nfs_version(options) == found.version
    for key in ("proto", "rsize", "wsize", "sec"):
        assert options[key] == found.options[key]


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.rxe-hw-counters")), ids=lambda p: p.stem)
def test_counters_of_a_link(path: Path, tmp_path: Path) -> None:
    """A soft-RoCE port is read with its state and packet counters, and bounds what it can have carried."""
    port = make_port(tmp_path / "rxe0", state="4: ACTIVE")
    before = rdma.links(tmp_path)
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        (port / "hw_counters" / name).write_text(f"{value}\n")
    (link,) = rdma.links(tmp_path)
    assert link.is_active
    assert link.describe() == "rxe0/1 ACTIVE, 100 Gb/sec (4X EDR), Ethernet"
    assert link.counters["sent_pkts"] == link.counters["rcvd_pkts"] > 0
    assert rdma.carried(before, [link]) is None
    assert rdma.carried([link], [link]) == Carried(0, known=True)


def test_a_device_that_counts_bytes(tmp_path: Path) -> None:
    """Ports count words of four bytes; a port that is down carries nothing and is no active one."""
    port = make_port(tmp_path / "mlx5_0", state="1: DOWN")
    (port / "counters" / "port_xmit_data").write_text("100\n")
    before = rdma.links(tmp_path)
    (port / "counters" / "port_xmit_data").write_text("350\n")
    after = rdma.links(tmp_path)
    assert rdma.carried(before, after) == Carried(1000, known=True)
    assert not after[0].is_active
    assert rdma.links(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [(100, 350, True), (0, 2**32 - 1, False), (2**32 - 1, 2**32 - 1, False), (900, 10, False), (0, 2**64 - 1, False)],
)
def test_a_counter_that_stands_still_proves_nothing(before: int, after: int, known: bool) -> None:
    """One that is at its end, or began anew, is left out of the sum, which is then no bound."""
    old, new = (
        Link("mlx5_0", "1", "ACTIVE", "", "InfiniBand", {"port_xmit_data": n, "port_rcv_data": 0})
        for n in (before, after)
    )
    assert rdma.carried([old], [new]) == Carried(1000 if known else 0, known=known)


def test_connections_to_data_servers(tmp_path: Path) -> None:
    """RPC connections of the kernel are listed with their kind, those to pNFS data servers among them."""
    for switch, name, address in ((0, "xprt-1-rdma", "10.0.0.1"), (1, "xprt-2-tcp", "10.0.0.2")):
        folder = tmp_path / f"switch-{switch}" / name
        folder.mkdir(parents=True)
        (folder / "dstaddr").write_text(f"{address}\n")
    assert rdma.rpc_connections(tmp_path) == [("rdma", "10.0.0.1"), ("tcp", "10.0.0.2")]


def test_several_connections_and_odd_names() -> None:
    """nconnect, escaped spaces in mount points, mounts upon each other and old kernels' eight numbers are read."""
    head = "device s:/a\\040b mounted on /mnt/x\\040y with fstype nfs4 statvers=1.1\n"
    text = (
        f"{head}\topts:\trw,vers=4,minorversion=1,proto=tcp\n"
        f"{head}\topts:\trw,vers=4.1,proto=tcp,nconnect=2\n"
        "\txprt:\ttcp 0 0 2 0 0 225 225 0 997 0\n\txprt:\ttcp 0 0 2 0 0 7 7 0 997 0\n\t        READ: 1 2 3 4 5 6 7 8\n"
    )
    first, second = parse(text)
    assert first.version == second.version == (4, 1)
    assert mountstats.at(text, Path("/mnt/x y")) == second
    assert (second.source, second.nconnect, [t.kind for t in second.transports]) == ("s:/a b", 2, ["tcp", "tcp"])
    assert second.operation("READ") == Operation(1, 2, 3, 4, 5, 6, 7, 8, 0)
    assert (second.pnfs_reads, second.layout) == (0, "")


def make_port(device: Path, *, state: str) -> Path:
    """Make port 1 of a device as sysfs shows it; return its folder."""
    port = device / "ports" / "1"
    for folder in ("counters", "hw_counters"):
        (port / folder).mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    (port / "link_layer").write_text("Ethernet\n")
    return port


#: Names as bytes that mountinfo and mountstats hold: all but NUL and slash; the kernel escapes four of them.
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name not in {b".", b".."})


def escaped(name: bytes) -> bytes:
    """Return a name as the kernel writes it (`seq_escape` with space, tab, line feed and backslash)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, NAMES, NAMES)
def test_whatever_bytes_stand_in_a_table(tmp_path: Path, point: bytes, source: bytes, before: bytes) -> None:
    """Any name, of this mount and of others, leaves mountinfo and mountstats readable and the mount in its place."""
    at, other = b"/mnt/" + escaped(point), b"/x/" + escaped(before)
    (tmp_path / "mountinfo").write_bytes(
        b"21 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
        + b"22 21 0:40 / %s rw - tmpfs %s rw\n" % (other, escaped(source))
        + b"90 21 0:50 / %s rw - nfs4 s:/%s rw,vers=4.2,proto=rdma\n" % (at, escaped(source))
    )
    (tmp_path / "mountstats").write_bytes(
        b"device tmpfs mounted on %s with fstype tmpfs\n" % other
        + b"device s:/%s mounted on %s with fstype nfs4 statvers=1.1\n" % (escaped(source), at)
        + b"\topts:\trw,vers=4.2,proto=rdma\n\tage:\t7\n\t        READ: 1 1 0 0 0 0 0 0 0\n"
    )
    found = mount_of(Path(os.fsdecode(b"/mnt/" + point)), proc=tmp_path)
    assert (found.fstype, os.fsencode(found.source)) == ("nfs4", b"s:/" + source)
    assert os.fsencode(found.point) == os.path.normpath(b"/mnt/" + point)
    assert found.nfs is not None
    assert (found.nfs.age_s, found.nfs.operation("READ").ops) == (7, 1)


ROOT = "21 1 254:0 / / rw - ext4 /dev/vda rw"


@pytest.mark.parametrize(
    ("lines", "path", "fstype"),
    [
        (["22 21 0:1 / /mnt rw - xfs a rw", "23 22 0:2 / /mnt/kv rw - nfs4 s:/e rw"], "/mnt/kv/sub", "nfs4"),
        # What is mounted later over a parent hides what lies below it.
        (["23 21 0:2 / /mnt/kv rw - nfs4 s:/e rw", "24 21 0:3 / /mnt rw - tmpfs t rw"], "/mnt/kv/sub", "tmpfs"),
        (["23 21 0:2 / /mnt/kv rw - nfs4 s:/e rw", "24 21 0:3 / / rw - tmpfs t rw"], "/mnt/kv/sub", "tmpfs"),
        # The table need not be in the order of mounting.
        (["24 21 0:3 / /mnt rw - tmpfs t rw", "23 21 0:2 / /mnt/kv rw - nfs4 s:/e rw"], "/mnt/kv/sub", "tmpfs"),
        (["23 21 0:2 / /mnt/kv rw - nfs4 s:/e rw", "25 23 0:4 / /mnt/kv rw - xfs b rw"], "/mnt/kv", "xfs"),
        (
            ["23 21 0:2 / /mnt/kv rw - autofs systemd-1 rw", "26 23 0:5 / /mnt/kv rw - nfs4 s:/e rw"],
            "/mnt/kv/x",
            "nfs4",
        ),
        (["23 21 0:2 / /mnt/kv rw - nfs4 s:/e rw"], "/mnt/kvcache", "ext4"),
    ],
)
def test_the_mount_that_a_walk_ends_on(tmp_path: Path, lines: list[str], path: str, fstype: str) -> None:
    """A folder is on the mount that the kernel's own walk comes to, whatever else is mounted below or beside."""
    (tmp_path / "mountinfo").write_text("\n".join([ROOT, *lines, ""]))
    assert mount_of(Path(path), proc=tmp_path).fstype == fstype


def test_the_kernel_says_on_which_mount_a_folder_was_opened(tmp_path: Path) -> None:
    """Its word stands above the walk: `mnt_id` of the opened folder, which had automounts triggered."""
    folder = tmp_path / "kv"
    folder.mkdir()
    proc = tmp_path / "proc"
    (proc / "fdinfo").mkdir(parents=True)
    (proc / "mountinfo").write_text(f"{ROOT}\n77 21 0:9 / /elsewhere rw - nfs4 s:/e rw,vers=4.2\n")
    for number in range(200):
        (proc / "fdinfo" / str(number)).write_text("pos:\t0\nflags:\t0100000\nmnt_id:\t77\nino:\t2\n")
    assert mount_of(folder / "not" / "there", proc=proc).source == "s:/e"
    assert mount_of(tmp_path) == mount_of(tmp_path / "nothing")


def test_mounts_upon_each_other_have_their_own_counters(tmp_path: Path) -> None:
    """Of several NFS mounts at one place each is given its own counters, by its place in both tables."""
    rows = [f"{n} {n - 1} 0:{n} / /mnt/kv rw - nfs4 s:/{n} rw,vers=4.2" for n in (22, 23, 24)]
    (tmp_path / "mountinfo").write_text("\n".join([ROOT, *rows, ""]))
    blocks = [f"device s:/{n} mounted on /mnt/kv with fstype nfs4 statvers=1.1\n\tage:\t{n}\n" for n in (22, 23, 24)]
    (tmp_path / "mountstats").write_text("".join(blocks))
    (tmp_path / "fdinfo").mkdir()
    for wanted in (22, 23, 24):
        for number in range(200):
            (tmp_path / "fdinfo" / str(number)).write_text(f"pos:\t0\nmnt_id:\t{wanted}\n")
        found = mount_of(tmp_path, proc=tmp_path)
        assert found.nfs is not None
        assert (found.source, found.nfs.age_s) == (f"s:/{wanted}", wanted)


LINES = st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" "))


@settings(deadline=None)
@given(st.lists(LINES, max_size=8))
def test_lines_that_nobody_knows_are_left_out(lines: list[bytes]) -> None:
    """Whatever newer kernels write between the known lines, the known ones are read."""
    more = b"".join(b"\t~" + line + b"\n" for line in lines)
    text = b"device s:/e mounted on /kv with fstype nfs4 statvers=1.2\n" + more + b"\tage:\t7\n" + more
    (found,) = parse(os.fsdecode(text + b"\t READ: 1 2 0 0 0 0 0 0 0\nno device mounted on /READ: with fstype x\n"))
    assert (found.age_s, found.operation("READ").transmissions) == (7, 2)
