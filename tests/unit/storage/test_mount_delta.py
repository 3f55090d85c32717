"""Whether two readings are of one mount, and what is told of a mount that is not the one it was."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import RunError
from pytest_kvcache.proof.mount_account import of_mount
from pytest_kvcache.proof.storage_account import LmcacheAccount
from pytest_kvcache.storage.account import MountReading
from pytest_kvcache.storage.folder import FolderAccount
from pytest_kvcache.storage.mount_delta import changed_options, delta
from pytest_kvcache.storage.mounts import Mount, mount_of
from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.requirement import Require, unmet
from tests.unit.storage.test_mountstats import reading

SAMPLE = "pnfs-flexfiles-rdma"
ROOT = "21 1 254:0 / / rw - ext4 /dev/vda rw"
NFS = "nfs4 s:/kv rw,vers=4.2,proto=rdma"


def pair() -> tuple[Reading, Reading]:
    """Return two readings of a real mount: before and after a load."""
    return reading(f"{SAMPLE}.before"), reading(f"{SAMPLE}.after")


@given(
    age=st.integers(min_value=0, max_value=10**7),
    window=st.floats(min_value=0, max_value=10**6),
    gone=st.floats(min_value=0, max_value=1),
)
def test_a_mount_that_began_anew_is_told_by_its_age(age: int, window: float, gone: float) -> None:
    """However much a new mount has counted: it is younger than the time between the readings, the old one never is."""
    before, after = pair()
    before = replace(before, age_s=age, read_at_s=100.0)
    same = replace(after, age_s=age + int(window), read_at_s=100.0 + window)
    assert delta(before, same).seconds == int(window)
    lived_s = int(window * gone)  # it was mounted within the window
    if age + window - lived_s > 3:
        with pytest.raises(RunError, match="mounted anew between"):
            delta(before, replace(after, age_s=lived_s, read_at_s=100.0 + window))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"proto": "tcp"}, "proto rdma -> tcp"),
        ({"sync": ""}, "+sync"),
        ({"actimeo": "0"}, "+actimeo=0"),
        ({"hard": None}, "-hard"),
        ({"wsize": "4096", "soft": "", "hard": None}, "wsize 524288 -> 4096, +soft, -hard"),
    ],
)
def test_options_that_changed_are_named(changes: dict[str, str | None], expected: str) -> None:
    """What differs is told as it is written in the table: changed, new and gone options, nothing else."""
    before, after = pair()
    options = {key: value for key, value in {**after.options, **changes}.items() if value is not None}
    assert changed_options(before, replace(after, options=options)) == expected


def judged(before: MountReading, after: MountReading) -> tuple[str, ...]:
    """Return the faults of a load in which LMCache says that it moved what the mount moved."""
    moved = after.reading.bytes["server_write"]
    return of_mount(before, after, LmcacheAccount(moved, moved, moved, moved), "pnfs").faults


def test_a_remount_in_place_makes_a_load_invalid() -> None:
    """Counters go on over a remount in place; that its options are others is a fault all the same, of any option."""
    before, after = pair()
    changed = replace(after, options={**after.options, "sync": ""})
    assert judged(MountReading(before), MountReading(after)) == ()
    (fault,) = judged(MountReading(before), MountReading(changed))
    assert fault == "/mnt/kv changed during the load: mounted with +sync"


def test_a_mount_with_other_options_is_no_automounters() -> None:
    """An automounter mounts with the same options; where they are others, somebody mounted by hand."""
    before, after = pair()
    place = "autofs at /mnt, timeout 60 s"
    anew = replace(after, age_s=0, options={**after.options, "proto": "tcp"})
    old = replace(before, age_s=20)
    (idle,) = judged(MountReading(old, automounter=place), MountReading(replace(after, age_s=0), automounter=place))
    assert f"an automounter ({place}) ended it while it was idle" in idle
    (by_hand,) = judged(MountReading(old, automounter=place), MountReading(anew, automounter=place))
    assert "was mounted anew with other options (proto rdma -> tcp)" in by_hand
    (plain,) = judged(MountReading(old), MountReading(replace(after, age_s=0)))
    assert "was mounted anew between two readings" in plain


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"23 21 0:2 / /mnt/kv rw - {NFS}", "24 23 0:3 / /mnt/kv rw - tmpfs t rw"], "s:/kv at /mnt/kv"),
        ([f"23 21 0:2 / /mnt/kv rw - {NFS}", "24 21 0:3 / /mnt rw - tmpfs t rw"], "s:/kv at /mnt/kv"),
        ([f"23 21 0:2 / /mnt/kv rw - {NFS}", "24 21 0:3 / / rw - tmpfs t rw"], "s:/kv at /mnt/kv"),
        ([f"23 21 0:2 / /mnt rw - {NFS}", "24 23 0:3 / /mnt/kv rw - tmpfs t rw"], ""),
        ([f"23 21 0:2 / /mnt/kvcache rw - {NFS}"], ""),
        (["24 21 0:3 / /mnt/kv rw - tmpfs t rw"], ""),
    ],
)
def test_a_mount_that_lies_over_another_is_told(tmp_path: Path, lines: list[str], expected: str) -> None:
    """Where NFS would hold a folder if nothing lay over it, the tier's refusal says what hides what."""
    (tmp_path / "mountinfo").write_text("\n".join([ROOT, *lines, ""]))
    found = mount_of(Path("/mnt/kv/sub"), proc=tmp_path)
    assert (found.hides, found.is_nfs) == (expected, False)
    requirements: tuple[Require, ...] = ("nfs4.1", "pnfs", "pnfs-rdma")
    for require in requirements:
        missing = unmet(require, found)
        assert missing is not None
        assert (f"it hides the mount of {expected}" in missing[0]) is bool(expected)
    assert unmet("none", found) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [("rw,fd=5,timeout=60,indirect", "autofs at /mnt, timeout 60 s"), ("rw,timeout=0", ""), ("rw", "")],
)
def test_an_automounters_place_is_told(tmp_path: Path, options: str, expected: str) -> None:
    """A mount upon autofs is one that ends when it is idle, unless its timeout is 0."""
    lines = [ROOT, f"22 21 0:1 / /mnt rw - autofs auto {options}", f"23 22 0:2 / /mnt/kv rw - {NFS}", ""]
    (tmp_path / "mountinfo").write_text("\n".join(lines))
    assert mount_of(Path("/mnt/kv/sub"), proc=tmp_path).automounter == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the storage is full: No space left on device"),
        (errno.EDQUOT, "the storage is full: Disk quota exceeded"),
        (errno.EIO, "cannot be listed: Input/output error"),
    ],
)
def test_a_storage_that_became_full_is_told(tmp_path: Path, number: int, expected: str) -> None:
    """That data could not be written for want of room is said as such, with what to do; other errors are not."""

    def mount(_: Path) -> Mount:
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunError, match=expected):
        FolderAccount(tmp_path, "pnfs", mount=mount).read()


def test_a_folder_that_was_hidden_is_told(tmp_path: Path) -> None:
    """A folder that is gone since something was mounted over its storage names both."""
    over = Mount(tmp_path, "tmpfs", "t", {}, hides="s:/kv at /mnt/kv")
    with pytest.raises(RunError, match=r"tmpfs at .* hides the mount of s:/kv at /mnt/kv"):
        FolderAccount(tmp_path / "gone", "pnfs", mount=lambda _: over).read()
