"""What is said of a shared folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_kvcache import preflight
from pytest_kvcache.preflight import fs
from pytest_kvcache.preflight.kvsize import Stored
from pytest_kvcache.storage import mounts
from pytest_kvcache.tiers.fs import FsTier
from tests.unit.storage.test_mountstats import SAMPLES
from tests.unit.test_tiers import context


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: str) -> Path:
    """Have the kernel's tables say that a folder is the mount of a sample; return the folder."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    source, point, kind, options, *_ = (SAMPLES / f"{sample}.mounts").read_text().splitlines()[-1].split()
    (tmp_path / "mountinfo").write_text(
        f"21 1 1:0 / / rw - ext4 /dev/vda rw\n9 21 0:5 / {folder} rw - {kind} {source} {options}\n"
    )
    text = (SAMPLES / f"{sample}.after.mountstats").read_text()
    (tmp_path / "mountstats").write_text(text.replace(f" on {point} with", f" on {folder} with"))
    monkeypatch.setattr(mounts, "PROC", tmp_path)
    return folder


def test_a_mount_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, transport, layout, connections, sizes and security of an NFS mount are shown."""
    folder = pretend(tmp_path, monkeypatch, "pnfs-flexfiles-rdma")
    found = fs.mount(folder, "pnfs-rdma")
    assert found.status == "pass"
    assert found.found.startswith(
        "NFS v4.2 over rdma, LAYOUT_FLEX_FILES, nconnect 1, rsize 512 KiB, wsize 512 KiB, sec=sys at "
    )


def test_a_mount_that_is_not_what_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing and what to do are said."""
    found = fs.mount(pretend(tmp_path, monkeypatch, "pnfs-flexfiles-tcp-v41"), "pnfs-rdma")
    assert (found.status, "not over RDMA" in found.found, "proto=rdma" in found.todo) == ("fail", True, True)


def test_stand_ins_are_warned_of(tmp_path: Path) -> None:
    """A local folder in the place of the mount is named, and nothing is required of it."""
    assert fs.mount(tmp_path, "none", stand_in=True).status == "warn"
    assert fs.layouts_used(tmp_path, "none").found == "not required"


def test_a_layout_that_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing moves no counter of layouts, the tier is kept from booting, with the reason."""
    folder = pretend(tmp_path, monkeypatch, "pnfs-flexfiles-rdma")
    tier = FsTier(name="pnfs", kind="fs", path=folder, require="pnfs-rdma")
    assert tier.unavailable(context(tmp_path)) is None
    (reason,) = preflight.blocking(tier, context(tmp_path))
    assert reason.startswith("layouts: LAYOUT_FLEX_FILES, LAYOUTGET 2, ")
    assert "0 writes and 0 reads by the layout: all through the metadata server" in reason
    assert list(folder.iterdir()) == []


def test_a_folder_that_can_be_written(tmp_path: Path) -> None:
    """A file is written, synced, read back and removed; a folder that was missing is missing again."""
    folder = tmp_path / "a" / "b"
    found = fs.writable(folder)
    assert (found.status, found.found.startswith("4 MiB written and synced in ")) == ("pass", True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses() -> None:
    """What the system says of a write is what was found; /proc refuses even root."""
    found = fs.writable(Path("/proc/self/kv"))
    assert (found.status, found.found.startswith("cannot be written: ")) == ("fail", True)


def test_storage_that_gives_back_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that differs from the write is a failure."""
    monkeypatch.setattr(fs, "read_through", lambda _: (b"other", True))
    assert "differs" in fs.writable(tmp_path).found


def test_reads_past_the_page_cache(tmp_path: Path) -> None:
    """A file whose size is no multiple of a block is read whole."""
    path = tmp_path / "x"
    data = os.urandom((1 << 20) + 12345)
    fs.write_through(path, data)
    assert fs.read_through(path)[0] == data


def test_room_for_what_is_coming(tmp_path: Path) -> None:
    """Bytes and files that do not fit fail, a nearly full file system is warned of, the unknown is said to be so."""
    stat = os.statvfs(tmp_path)
    free = stat.f_bavail * stat.f_frsize
    assert fs.space(tmp_path, Stored(1 << 20, 10)).status == "pass"
    assert fs.space(tmp_path, Stored(free + 1, 10)).status == "fail"
    assert fs.space(tmp_path, Stored(free - 1, 10)).status == "warn"
    assert "a boot writes: unknown" in fs.space(tmp_path / "not" / "yet", None).found


def test_other_runs(tmp_path: Path) -> None:
    """Folders of other runs are counted, and the first of them named."""
    assert fs.other_runs(tmp_path / "none").status == "pass"
    for i in range(5):
        (tmp_path / f"kvcache-{i}").mkdir()
    assert fs.other_runs(tmp_path).found == "5: kvcache-0, kvcache-1, kvcache-2 and 2 more"


def test_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may serve a read without the server is listed for NFS mounts."""
    assert "page cache" in fs.page_cache(Path("/")).found
    folder = pretend(tmp_path, monkeypatch, "plain-v4.2-tcp")
    assert "no nosharecache" in fs.page_cache(folder).found
    text = (tmp_path / "mountinfo").read_text()
    (tmp_path / "mountinfo").write_text(text.replace("vers=4.2", "vers=4.2,fsc"))
    assert fs.page_cache(folder).status == "warn"
