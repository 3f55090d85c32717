"""Several mounts of one export are read as one, and nothing that one's counters show is lost; no guest runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.pnfs import of_guest, perf, storage_told
from lab.pnfs.of_guest import together
from pytest_kvcache.check import Finding
from pytest_kvcache.errors import RunError
from pytest_kvcache.preflight.kvsize import Stored
from pytest_kvcache.proof.storage import compare_readings
from pytest_kvcache.proof.storage_account import LmcacheAccount
from pytest_kvcache.storage.account import MountReading, StorageReading
from pytest_kvcache.storage.mount_delta import delta
from pytest_kvcache.storage.mountstats import Operation, Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.transports import Transport

CHUNK = 524288
OPTIONS = {"vers": "4.2", "proto": "rdma", "rsize": "1048576", "wsize": "1048576"}
COUNTS = st.integers(0, 10**6)


def reading(point: str, *, writes: int = 0, reads: int = 0, age_s: int = 100, at_s: float = 1000.0) -> Reading:
    """Return the counters of a mount that wrote and read that many chunks, all by the layout."""
    return Reading(
        source="192.168.77.1:/kv",
        point=Path(point),
        fstype="nfs4",
        options=OPTIONS,
        age_s=age_s,
        layout="LAYOUT_FLEX_FILES",
        events=(*([0] * 25), reads, writes),
        bytes={
            "normal_read": reads * CHUNK,
            "normal_write": writes * CHUNK,
            "direct_read": 0,
            "direct_write": 0,
            "server_read": reads * CHUNK,
            "server_write": writes * CHUNK,
            "pages_read": 0,
            "pages_written": 0,
        },
        transports=(Transport("rdma", (0, 0, 1, 0, 0, 50 + writes + reads, *([0] * 20))),),
        operations={
            "WRITE": Operation(writes, writes, 0, writes * CHUNK, 0),
            "READ": Operation(reads, reads, 0, 0, reads * CHUNK),
            "LAYOUTGET": Operation(writes + reads, writes + reads),
            "SEQUENCE": Operation(7, 7),
        },
        read_at_s=at_s,
    )


def storage(*mounts: Reading, files: int = 0, links: tuple[Link, ...] = ()) -> list[StorageReading]:
    """Return what each mount says, the last one with the others as its neighbours."""
    found = []
    for mount in mounts:
        whole = replace(mount, neighbours=tuple(each for each in mounts if each is not mount))
        found.append(
            StorageReading(files, files * CHUNK, mount=MountReading(whole, links, (("rdma", "192.168.77.1"),)))
        )
    return found


def link(packets: int) -> tuple[Link, ...]:
    """Return a soft-RoCE link that sent so many packets."""
    return (Link("rxe1", "1", "ACTIVE", "", "Ethernet", {"sent_pkts": packets, "rcvd_pkts": packets}),)


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), min_size=1, max_size=4))
def test_what_mounts_did_together_is_the_sum(mounts: list[tuple[int, int, int, int]]) -> None:
    """Bytes, layouts and operations of all mounts add up to the byte; what is the client's own is counted once."""
    before = storage(*(reading(f"/mnt/{n}", writes=w, reads=r) for n, (w, r, _, _) in enumerate(mounts)))
    after = storage(
        *(
            reading(f"/mnt/{n}", writes=w + more_w, reads=r + more_r, age_s=160, at_s=1060)
            for n, (w, r, more_w, more_r) in enumerate(mounts)
        )
    )
    old, new = (together(each).mount for each in (before, after))
    assert old is not None
    assert new is not None
    grown = delta(old.reading, new.reading)
    written, read = (sum(each[n] for each in mounts) for n in (2, 3))
    assert (grown.bytes["server_write"], grown.bytes["server_read"]) == (written * CHUNK, read * CHUNK)
    assert (grown.pnfs_writes, grown.pnfs_reads) == (written, read)
    assert grown.operation("WRITE").ops == written
    assert new.reading.operation("SEQUENCE").ops == 7
    assert new.reading.neighbours == ()


def test_the_account_holds_to_the_byte() -> None:
    """What two LMCaches stored and loaded by two mounts, and what these counted, agree: no fault, and equal figures."""
    before = together(storage(reading("/mnt/kv"), reading("/mnt/kv2"), links=link(10)))
    after = together(
        storage(
            reading("/mnt/kv", writes=30, reads=11, age_s=160, at_s=1060),
            reading("/mnt/kv2", writes=12, reads=25, age_s=160, at_s=1060),
            files=42,
            links=link(50000),
        )
    )
    claimed = LmcacheAccount(30 * CHUNK, 42 * CHUNK, 42 * CHUNK, 36 * CHUNK)
    check = compare_readings(before, after, claimed, "pnfs-rdma", settled=True)
    assert check.faults == ()
    assert check.findings == ()
    assert check.figures["mount_written_bytes"] == check.figures["file_bytes"] == claimed.stored
    assert check.figures["mount_read_bytes"] == claimed.loaded
    assert (check.figures["pnfs_writes"], check.figures["pnfs_reads"]) == (42, 36)


@pytest.mark.parametrize("which", [0, 1])
def test_a_mount_that_was_made_anew(which: int) -> None:
    """It is noticed whichever of them it was, also where it has counted more since than the old one had."""
    before = together(storage(reading("/mnt/kv", writes=5), reading("/mnt/kv2", writes=5)))
    now = [reading(point, writes=50, age_s=160, at_s=1060) for point in ("/mnt/kv", "/mnt/kv2")]
    now[which] = replace(now[which], age_s=20)
    after = together(storage(*now, files=90))
    claimed = LmcacheAccount(0, 90 * CHUNK, 90 * CHUNK, 0)
    (fault,) = compare_readings(before, after, claimed, "pnfs-rdma", settled=True).faults
    assert "mounted anew" in fault


@pytest.mark.parametrize("which", [0, 1])
def test_a_mount_with_other_options(which: int) -> None:
    """Where one mount's transport changed in a load, the account says from what to what."""
    before = together(storage(reading("/mnt/kv"), reading("/mnt/kv2")))
    now = [reading(point, writes=5, age_s=160, at_s=1060) for point in ("/mnt/kv", "/mnt/kv2")]
    now[which] = replace(now[which], options={**OPTIONS, "proto": "tcp"})
    after = together(storage(*now, files=10))
    claimed = LmcacheAccount(0, 10 * CHUNK, 10 * CHUNK, 0)
    (fault,) = compare_readings(before, after, claimed, "pnfs-rdma", settled=True).faults
    assert "over rdma" in fault
    assert "tcp" in fault


def test_one_mount_whose_data_goes_elsewhere() -> None:
    """Bytes that one LMCache stored beside its mount are missed, though the other mount wrote all of its own."""
    before = together(storage(reading("/mnt/kv"), reading("/mnt/kv2"), links=link(10)))
    now = storage(
        reading("/mnt/kv", writes=30, age_s=160, at_s=1060),
        reading("/mnt/kv2", age_s=160, at_s=1060),
        files=42,
        links=link(50000),
    )
    claimed = LmcacheAccount(30 * CHUNK, 42 * CHUNK, 42 * CHUNK, 0)
    faults = compare_readings(before, together(now), claimed, "pnfs-rdma", settled=True).faults
    assert any("the mount wrote 15.7 to its server" in fault for fault in faults)


def test_mounts_that_list_different_files() -> None:
    """Two mounts of one export that show different files are no account of anything."""
    first, second = storage(reading("/mnt/kv"), reading("/mnt/kv2"))
    with pytest.raises(RunError, match="list different files: 524288 bytes in 1 files, 0 bytes in 0 files"):
        together([replace(first, files=1, bytes=CHUNK), second])


def test_a_folder_that_is_on_no_mount() -> None:
    """A folder that lies on something else than NFS by now is no account of a mount."""
    with pytest.raises(RunError, match="on no NFS mount"):
        together([*storage(reading("/mnt/kv")), StorageReading(0, 0)])


def test_what_the_guest_says_arrives_whole() -> None:
    """A reading that goes through JSON is the same reading, its neighbours too."""
    sent = storage(reading("/mnt/kv", writes=3), reading("/mnt/kv2", reads=4), files=3, links=link(9))
    text = json.dumps([asdict(each) for each in sent], default=str)
    got = of_guest._READINGS.validate_python(json.loads(text))
    assert got == sent
    assert [each.mount.reading.neighbours for each in got if each.mount] == [
        each.mount.reading.neighbours for each in sent if each.mount
    ]


class _Guest:
    """A lab whose guest is this process: it runs the program's own function, in place of a guest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.ended = folder, 0, False

    def run(self, argv: list[str], **_: object) -> None:
        self.asked += 1
        if self.ended:
            raise RunError("has ended", where="the lab's guest", todo="see its console")
        told: dict[str, Any] = json.loads(argv[-1])
        answer = json.dumps(storage_told.main(told), default=str)
        (self.folder / Path(told["out"]).name).write_text(answer)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


def test_checks_are_asked_for_once(tmp_path: Path) -> None:
    """All checks of all mounts are carried out by one program in the guest, each by its own name."""
    guest = _Guest(tmp_path)
    found = of_guest.checks(guest, [str(tmp_path), "/proc"], "none", Stored(10**15, 1))  # type: ignore[arg-type]
    said = {each.name: each.inspect() for each in found}
    assert guest.asked == 1
    assert said[f"writable, {tmp_path}"].status == "pass"
    assert said["writable, /proc"].status == "fail"
    assert said[f"space, {tmp_path}"].status == "fail"
    assert {each.name.partition(",")[0] for each in found if each.blocking} == {"writable", "layouts", "space"}


def test_checks_without_an_answer(tmp_path: Path) -> None:
    """A guest that cannot carry the checks out keeps a pair from being booted, with its own words."""
    guest = _Guest(tmp_path)
    guest.ended = True
    (check,) = of_guest.checks(guest, ["/mnt/kv"], "none", None)  # type: ignore[arg-type]
    assert check.blocking
    assert check.inspect() == Finding("fail", "has ended", "see its console")


def test_the_guests_program_is_light() -> None:
    """The program of the guest imports no library that takes seconds: each takes User-Mode Linux five times as long."""
    code = "import sys; from pytest_kvcache.preflight import fs; "
    code += "from pytest_kvcache.storage import folder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=perf.environment(""), capture_output=True, check=True)
    assert not {"numpy", "pandas", "scipy", "pydantic"} & {*done.stdout.decode().split()}


def test_an_error_of_the_guest_is_one_here(tmp_path: Path) -> None:
    """What the guest cannot read is told with its place and what to do, as of a folder of this machine."""
    with pytest.raises(RunError, match="/nowhere: cannot be listed: No such file"):
        of_guest.ask(_Guest(tmp_path), "account", ["/nowhere"], require="none")  # type: ignore[arg-type]
