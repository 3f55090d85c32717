"""What is said of a mount whose writes do not come back."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_kvcache.errors import RunError
from pytest_kvcache.preflight import fs
from pytest_kvcache.storage import folder, hanging
from pytest_kvcache.storage.folder import FolderAccount
from pytest_kvcache.storage.mountstats import Operation, Reading
from tests.unit.storage.test_mountstats import reading


def after(seconds: int, **operations: Operation) -> tuple[Reading, Reading]:
    """Return two readings of a real mount between which so much happened (counts by operation)."""
    before = reading("pnfs-flexfiles-rdma.after")
    grown = dict(before.operations)
    for name, more in operations.items():
        old = before.operation(name)
        grown[name] = Operation(*(getattr(old, n) + getattr(more, n) for n in Operation.__dataclass_fields__))
    return before, replace(before, age_s=before.age_s + seconds, operations=grown)


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ({}, "its server answered nothing meanwhile"),
        ({"GETATTR": Operation(ops=3)}, ""),
        (
            {"LAYOUTGET": Operation(ops=21), "LAYOUTRETURN": Operation(ops=19)},
            "in 20 s 19 layouts were given back: the data servers that the server names cannot be reached",
        ),
        (
            {"LAYOUTRETURN": Operation(ops=9000), "WRITE": Operation(ops=9000, errors=9000)},
            "in 20 s 9000 layouts were given back: the data servers that the server names refuse what they are sent "
            "(9000 WRITEs and READs failed)",
        ),
        ({"WRITE": Operation(ops=40, errors=40)}, "40 WRITEs and READs failed"),
        (
            {"WRITE": Operation(transmissions=4, timeouts=2), "GETATTR": Operation(transmissions=1, timeouts=1)},
            "requests got no answer and were sent again: WRITE 2, GETATTR 1; its server answered nothing meanwhile",
        ),
    ],
    ids=["nothing", "slow", "unreachable", "refusing", "errors", "timeouts"],
)
def test_the_kernels_counters_say_what_is_waited_for(operations: dict[str, Operation], said: str) -> None:
    """Each way to hang has its words; what is usual has none."""
    assert "; ".join(hanging.counted(*after(20, **operations))) == said


def test_a_full_storage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pNFS server that grants layouts has clients try for ever: its free space tells."""
    full = SimpleNamespace(f_bavail=3, f_frsize=4096, f_blocks=25600)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert hanging.begin(tmp_path).why() == "the storage is full (12 KiB of 100 MiB are free)"


def test_an_account_says_that_nothing_more_fits_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading has what the storage says of its room, also where it says nothing."""
    found = FolderAccount(tmp_path).read()
    assert (found.files, found.full) == (0, "")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096, f_blocks=25600))
    assert FolderAccount(tmp_path).read().full == "the storage is full (12 KiB of 100 MiB are free)"
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096, f_blocks=0))
    assert FolderAccount(tmp_path).read().full == ""


def test_a_write_that_hangs_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check ends, and says that the write got no answer, why, and where to look."""
    goes_on = threading.Event()
    monkeypatch.setattr(fs, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(fs, "write_through", lambda *_: goes_on.wait(60))
    monkeypatch.setattr(hanging.Wait, "why", lambda _: "its server answered nothing meanwhile")
    found = fs.writable(tmp_path)
    goes_on.set()
    expected = "a write of 4 MiB got no answer within 0 s: its server answered nothing meanwhile"
    assert (found.status, found.found) == ("fail", expected)
    assert "data servers" in found.todo


def test_nothing_is_written_to_a_full_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where less is free than would be written, that is said at once."""
    full = SimpleNamespace(f_bavail=3, f_frsize=4096, f_blocks=25600)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    found = fs.writable(tmp_path)
    assert found.status == "fail"
    assert "cannot be written: [Errno 28] No space left on device" in found.found
    assert list(tmp_path.iterdir()) == []


def test_an_account_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session does not wait for ever for what was written: the error names the folder and what is known."""
    goes_on = threading.Event()
    monkeypatch.setattr(folder, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(FolderAccount, "_read", lambda _: goes_on.wait(60))
    monkeypatch.setattr(hanging.Wait, "why", lambda _: "the storage is full")
    told = "what was written does not come to the storage, no answer within 0 s: the storage is full"
    with pytest.raises(RunError, match=told):
        FolderAccount(tmp_path).read()
    goes_on.set()
