"""LMCache's account of a storage held against the storage's own, on real readings of mounts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_kvcache.load.snapshot import Snapshot
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.proof.mount_account import of_mount
from pytest_kvcache.proof.storage import compare_accounts, without_account
from pytest_kvcache.proof.storage_account import AccountProof, LmcacheAccount
from pytest_kvcache.report.ledger import LedgerRow, storage_table
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.storage.account import MountReading, StorageReading
from pytest_kvcache.storage.mountstats import Operation
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require
from pytest_kvcache.telemetry.prometheus import Counters
from tests.unit.storage.test_mountstats import reading

CHUNK_TOKENS, CHUNK = 128, 524288
#: Of the samples: written and read from the server; what programs read is twice that, half of it from the page cache.
M100 = 104857600


def lmcache(stored: int = 0, loaded: int = 0) -> Counters:
    """Return the counters of an LMCache server that stored and loaded so many chunks since its start."""
    return {
        "lmcache_mp_l2_usage_bytes": stored * CHUNK,
        "lmcache_mp_l2_prefetch_load_completed_chunks_total": loaded,
        "lmcache_mp_l1_write_chunks_total": 10,
        "lmcache_mp_l1_memory_usage_bytes": 10 * CHUNK,
    }


def look(account: StorageReading, *servers: Counters, under_way: float = 0) -> Snapshot:
    """Return a look at which nothing changed between its two readings of counters."""
    counters = {f"lmcache-{n}": own for n, own in enumerate(servers)}
    return Snapshot(counters, account, counters, under_way=under_way)


def held(before: Snapshot, after: Snapshot, *, require: Require = "none") -> AccountProof:
    """Hold one load's looks."""
    return compare_accounts("who", require, before, after, chunk_tokens=CHUNK_TOKENS)


EMPTY = look(StorageReading(0, 0), lmcache(), lmcache())


def test_what_lmcache_stored_is_there() -> None:
    """A chunk that both servers stored is one file; everything between that and no common chunk is sound."""
    for files in (40, 60, 100):
        found = held(EMPTY, look(StorageReading(files, files * CHUNK), lmcache(60), lmcache(40)))
        assert (found.check.faults == ()) is (files >= 60)
    assert found.claimed == LmcacheAccount(least=60 * CHUNK, most=100 * CHUNK, stored=100 * CHUNK, loaded=0)
    assert found.check.unchecked == ("bytes that were loaded: nothing of this storage counts reads",)


def test_an_adapter_that_counts_no_bytes() -> None:
    """LMCache before 0.5.3 says of a folder how many chunks it stored: their bytes are held against the listing."""

    def old(stored: int) -> Counters:
        counters = dict(lmcache(stored))
        counters["lmcache_mp_l2_store_completed_objects_chunks_total"] = stored
        return counters | {"lmcache_mp_l2_usage_bytes": 0.0}

    for files, sound in ((40, False), (60, True), (100, True), (110, False)):
        found = held(EMPTY, look(StorageReading(files, files * CHUNK), old(60), old(40)))
        assert (found.check.faults == ()) is sound
    assert found.claimed == LmcacheAccount(least=60 * CHUNK, most=100 * CHUNK, stored=100 * CHUNK, loaded=0)


def test_stored_chunks_that_are_not_there() -> None:
    """Fewer bytes than one LMCache stored are a fault with both figures."""
    (fault,) = held(EMPTY, look(StorageReading(50, 50 * CHUNK), lmcache(60), lmcache(40))).check.faults
    assert fault.startswith("LMCache says that it stored 31.5 MB and more, and 26.2 MB in 50 files are there: ")


def test_somebody_else_writes_to_the_tier() -> None:
    """More bytes than all LMCaches stored are a fault, unless stores are under way."""
    more = StorageReading(110, 110 * CHUNK)
    (fault,) = held(EMPTY, look(more, lmcache(60), lmcache(40))).check.faults
    assert "57.7 MB in 110 files are there: something else writes to the tier" in fault
    open_ended = held(EMPTY, look(more, lmcache(60), lmcache(40), under_way=1)).check
    assert (open_ended.faults, "still under way" in open_ended.unchecked[0]) == ((), True)


def served(before: float, after: float) -> AccountProof:
    """Hold a load in which 10 chunks were stored and 30 loaded against what an S3 server moved in it."""
    first = look(StorageReading(5, 5 * CHUNK, served_bytes=before), lmcache(5, 7))
    last = look(StorageReading(15, 15 * CHUNK, served_bytes=after), lmcache(15, 37))
    return held(first, last)


def test_the_s3_server_moved_it() -> None:
    """Bytes put and got account for what LMCache stored and loaded; more is somebody else's and no fault."""
    for moved in (40, 60):
        found = served(100, 100 + moved * CHUNK)
        assert (found.check.faults, found.check.unchecked) == ((), ())
        assert found.check.figures["served_bytes"] == moved * CHUNK


def test_the_s3_server_moved_too_little() -> None:
    """Fewer bytes than stores and loads together mean that something else answered."""
    (fault,) = served(0, 20 * CHUNK).check.faults
    assert fault.startswith("LMCache says that it stored 5.2 MB and loaded 15.7, and its S3 server moved 10.5: ")
    assert "started anew" in served(5 * CHUNK, 0).check.faults[0]


def mounts(sample: str, *, words: int = M100) -> tuple[MountReading, MountReading]:
    """Return a real mount before and after its load, on a machine whose RDMA link carried so many words each way."""
    links = [
        Link("mlx5_0", "1", "ACTIVE", "100 Gb/sec", "Ethernet", {"port_xmit_data": n, "port_rcv_data": n})
        for n in (0, words)
    ]
    return (
        MountReading(reading(f"{sample}.before"), (links[0],)),
        MountReading(reading(f"{sample}.after"), (links[1],), (("rdma", "10.0.0.1"),)),
    )


def claimed(stored: float, loaded: float) -> LmcacheAccount:
    """Return a claim of so many bytes in a load."""
    return LmcacheAccount(least=0, most=stored, stored=stored, loaded=loaded)


@pytest.mark.parametrize(
    ("sample", "require", "written"),
    [
        ("plain-v3-rdma", "none", M100 // 2),
        ("plain-v4.0-tcp", "none", M100 // 2),
        ("plain-v4.2-tcp", "nfs4.1", M100 // 2),
        ("plain-rdma-quiet", "nfs4.1", 2 * M100),
        ("pnfs-flexfiles-tcp-v41", "pnfs", M100 // 2),
        ("pnfs-block-rdma-quiet", "pnfs", 2 * M100),
        ("pnfs-flexfiles-rdma", "pnfs-rdma", 2 * M100),
        ("pnfs-flexfiles-rdma-tcg", "pnfs-rdma", M100),
    ],
)
def test_a_real_mount_accounts_for_every_byte(sample: str, require: Require, written: int) -> None:
    """Bytes written and read by the mount are those of the load that was put on it."""
    said = of_mount(*mounts(sample), claimed(written, written), require)
    assert (said.faults, said.findings) == ((), ())
    assert said.figures["mount_written_bytes"] == written
    assert said.figures["mount_read_bytes"] >= written
    assert said.figures["other_writes"] == (0 if "pnfs" in require else written // (512 << 10))


def test_fewer_bytes_than_were_stored() -> None:
    """A mount that wrote less than LMCache stored is not the one that LMCache writes to."""
    (fault,) = of_mount(*mounts("pnfs-flexfiles-rdma"), claimed(3 * M100, 0), "pnfs-rdma").faults
    assert fault.startswith("LMCache says that it stored 314.6 MB, and the mount wrote 209.7 to its server: ")


def test_the_page_cache_is_a_finding_with_its_share() -> None:
    """Of what LMCache loaded, what the server did not send came from this machine's RAM: no fault, and said."""
    said = of_mount(*mounts("pnfs-flexfiles-rdma"), claimed(M100, 8 * M100), "pnfs-rdma")
    assert said.faults == ()
    assert said.figures["page_cache_share"] == pytest.approx(0.75)
    assert said.findings[0].startswith("the page cache served 75% of what LMCache loaded (209.7 of 838.9 MB came ")


def test_the_page_cache_served_all() -> None:
    """Without one READ by a layout there is nothing to say of the way of reads but that the page cache served them."""
    before, after = mounts("pnfs-flexfiles-rdma")
    still = replace(
        after.reading,
        events=(*after.reading.events[:25], before.reading.pnfs_reads, after.reading.pnfs_writes),
        bytes={**after.reading.bytes, "server_read": before.reading.bytes["server_read"]},
    )
    said = of_mount(before, replace(after, reading=still), claimed(M100, M100), "pnfs-rdma")
    assert said.faults == ()
    assert said.findings[0].startswith("the page cache served 100% ")


def test_the_silent_fallback_is_a_fault() -> None:
    """A layout that was granted and not used: all went through the metadata server, and the run is invalid."""
    for require in ("pnfs", "pnfs-rdma"):
        (fault,) = of_mount(*mounts("pnfs-scsi-fallback-rdma"), claimed(M100, M100), require).faults
        assert f'require = "{require}": LAYOUT_SCSI, LAYOUTGET 2, 0 writes and 0 reads by the layout' in fault
        assert "all through the metadata server (WRITE 200" in fault
    assert of_mount(*mounts("pnfs-scsi-fallback-rdma"), claimed(M100, M100), "nfs4.1").faults == ()


def test_reads_through_the_metadata_server_are_a_fault() -> None:
    """A load that only reads, and none of it by a layout."""
    (fault,) = of_mount(*mounts("pnfs-scsi-fallback-rdma"), claimed(0, M100), "pnfs").faults
    assert fault == 'require = "pnfs": 209.7 MB were read, none of it by a layout'


def test_data_servers_over_tcp_are_a_fault() -> None:
    """Where RDMA links carried less than the mount moved, the data went another way."""
    (fault,) = of_mount(*mounts("pnfs-flexfiles-rdma", words=1000), claimed(M100, M100), "pnfs-rdma").faults
    assert "data servers over TCP" in fault
    assert of_mount(*mounts("pnfs-flexfiles-rdma", words=1000), claimed(M100, M100), "pnfs").faults == ()


def test_some_of_it_through_the_metadata_server_is_a_finding() -> None:
    """Writes that are counted as operations and not as the layout's went another way than is required."""
    before, after = mounts("pnfs-flexfiles-rdma")
    fewer = replace(after.reading, events=(*after.reading.events[:25], after.reading.pnfs_reads, 300))
    said = of_mount(before, replace(after, reading=fewer), claimed(M100, M100), "pnfs-rdma")
    assert "100 WRITEs and 0 READs went through the metadata server, 33.3% of what" in said.findings[0]


def test_tries_that_came_to_the_metadata_server_are_a_fault() -> None:
    """As many tries as WRITEs say nothing: what the metadata server was sent shows that the layout was not used."""
    before, after = mounts("pnfs-flexfiles-rdma")
    (transport,) = after.reading.transports
    numbers = (*transport.numbers[:5], transport.numbers[5] + 400, *transport.numbers[6:10], 1600)
    sent = replace(transport, numbers=(*numbers, *transport.numbers[11:]))
    said = of_mount(
        before, replace(after, reading=replace(after.reading, transports=(sent,))), claimed(M100, 0), "pnfs"
    )
    assert "400 WRITEs and 0 READs went through the metadata server, 100.0% of what" in said.faults[0]
    assert said.figures["other_writes"] == 400


def test_bytes_that_were_not_sent_are_a_finding() -> None:
    """What NFS LOCALIO read and wrote on the server's own machine is told with its share, whatever is required."""
    before, after = mounts("plain-v4.2-tcp")
    fewer = {
        **after.reading.operations,
        "READ": replace(after.reading.operation("READ"), ops=1, bytes_received=1 << 19),
    }
    said = of_mount(before, replace(after, reading=replace(after.reading, operations=fewer)), claimed(0, 0), "none")
    assert said.findings == (
        "NFS LOCALIO: client and server are one machine, and 49.5% of all bytes (51.9 MB) were not sent: times of that "
        "share are those of its disk",
    )


def test_a_change_of_transport_is_a_fault() -> None:
    """A mount that fell back to TCP, or was mounted anew, during the load makes it invalid."""
    before, after = mounts("pnfs-flexfiles-rdma")
    tcp = replace(after.reading, options={**after.reading.options, "proto": "tcp"})
    (fault,) = of_mount(before, replace(after, reading=tcp), claimed(M100, 0), "none").faults
    assert fault.endswith("NFS 4.2 over rdma, LAYOUT_FLEX_FILES -> NFS 4.2 over tcp, LAYOUT_FLEX_FILES")
    (fault,) = of_mount(after, before, claimed(M100, 0), "none").faults
    assert "was mounted anew between two readings" in fault


def test_a_storage_that_says_nothing_is_a_fault() -> None:
    """Where a storage can be asked and does not answer, nothing is proved; where the mount comes or goes, too."""
    mute = Snapshot(unread="/mnt/kv: cannot be listed")
    assert held(EMPTY, mute).check.faults == ("the storage does not say what it holds: /mnt/kv: cannot be listed",)
    mounted = StorageReading(0, 0, mount=mounts("pnfs-flexfiles-rdma")[0])
    assert "mounted or unmounted" in held(look(mounted, lmcache()), EMPTY).check.faults[0]


def test_a_storage_that_is_full_is_the_cause_of_all_else() -> None:
    """What a mount counted meanwhile, failed layouts among it, is told of no data server where nothing more fits in."""
    before, after = mounts("pnfs-flexfiles-rdma")
    assert before is not None
    assert after is not None
    grown = {**after.reading.operations, "LAYOUTERROR": Operation(ops=after.reading.operation("LAYOUTERROR").ops + 1)}
    failed = replace(after, reading=replace(after.reading, operations=grown))
    start = look(StorageReading(0, 0, mount=before), lmcache())
    for full, said in [("", "a data server failed"), ("the storage is full (0 KiB of 9 MiB are free)", "full (0 KiB")]:
        end = look(StorageReading(400, 400 * CHUNK, mount=failed, full=full), lmcache(400, 400))
        (fault,) = held(start, end, require="pnfs-rdma").check.faults
        assert said in fault


def test_what_gives_no_account_is_said() -> None:
    """An adapter whose storage nobody can ask is not proved; a tier without shared storage needs no account."""
    split = Ledger({"vllm-0": Tokens(l1=10, l2=10)}, {})
    line = "the storage's own account: none is known for this adapter"
    assert without_account(Claim.L2, split).check.unchecked == (line,)
    assert without_account(Claim.L1, split) == without_account(Claim.DEVICE, split) == AccountProof()


def test_without_a_split_the_claim_needs_an_account() -> None:
    """Where LMCache does not tell L1 from L2, and nobody can ask the storage, nothing proves a claim on L2."""
    unsplit = Ledger({"vllm-0": Tokens(unsplit=20)}, {})
    (fault,) = without_account(Claim.L2, unsplit).check.faults
    assert "LMCache 0.5.5 and newer tell it" in fault
    assert without_account(Claim.L1, unsplit) == AccountProof()


def test_the_table() -> None:
    """A line a tier whose storage gives an account, with the columns of what it counts."""
    s3 = served(0, 40 * CHUNK)
    nfs = look(StorageReading(400, 400 * CHUNK, mount=mounts("pnfs-flexfiles-rdma")[1]), lmcache(400, 400))
    pnfs = held(look(StorageReading(0, 0, mount=mounts("pnfs-flexfiles-rdma")[0]), lmcache()), nfs, require="pnfs-rdma")
    assert pnfs.check.faults == ()
    rows = [LedgerRow(label, 3500, Ledger({}, {}), storage=s) for label, s in (("s3", s3), ("pnfs", pnfs))]
    head, *lines = storage_table([*rows, LedgerRow("gpu", 3500, Ledger({}, {}))]).splitlines()
    assert "mount wrote/read MB" in head
    assert lines[0].split() == ["s3", "3500", "5.2/15.7", "15", "7.9", "21.0", "who", "-", "-"]
    assert lines[1].split() == ["pnfs", "3500", "209.7/209.7", "400", "209.7", "-", "who", "209.7/209.7", "400/400"]
    assert storage_table([]) == ""
