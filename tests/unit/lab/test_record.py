"""What a lab notes of itself, and what is done with notes of the dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.pnfs import record
from lab.pnfs.record import Held


@pytest.fixture(autouse=True)
def own_sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the host's vm.max_map_count."""
    path = tmp_path / "max_map_count"
    path.write_text("65530")
    monkeypatch.setattr(record, "MAX_MAP_COUNT", path)
    return path


def test_a_lab_lives_while_its_lock_is_held(tmp_path: Path) -> None:
    """A lab is alive until its lock is let go; only then it can be cleaned up after."""
    held = Held.make(tmp_path / "runs", "aaaaaa")
    assert record.living(tmp_path / "runs") == [held.folder]
    assert Held.of_dead(held.folder) is None
    held.release()
    assert record.living(tmp_path / "runs") == []
    dead = Held.of_dead(held.folder)
    assert dead is not None
    assert dead.record == held.record
    assert record.clean(dead) == []
    assert not held.folder.exists()


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    """A lab between making its folder and writing its record is not taken for a dead one."""
    folder = tmp_path / "runs" / "aaaaaa"
    folder.mkdir(parents=True)
    said: list[str] = []
    record.clean_up_after_the_dead(tmp_path / "runs", said.append)
    assert (said, folder.exists()) == ([], True)


def test_a_record_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    """What a damaged record names is unknown: it is reported, and kept."""
    held = Held.make(tmp_path / "runs", "aaaaaa")
    held.release()
    (held.folder / "record.json").write_text('{"id": "aaaaaa"')
    said: list[str] = []
    record.clean_up_after_the_dead(tmp_path / "runs", said.append)
    assert held.folder.exists()
    assert len(said) == 1
    assert "record.json: cannot be read" in said[0]


def test_a_raised_sysctl_is_put_back(tmp_path: Path, own_sysctl: Path) -> None:
    """The value that was there before comes back with the end of the lab."""
    held = Held.make(tmp_path / "runs", "aaaaaa")
    record.raise_max_map_count(held, 1_000_000)
    assert own_sysctl.read_text() == "1000000"
    record.clean(held)
    assert own_sysctl.read_text() == "65530"


def test_a_larger_sysctl_is_left_alone(tmp_path: Path, own_sysctl: Path) -> None:
    """A value that is large enough already is neither changed nor put back."""
    own_sysctl.write_text("2000000")
    held = Held.make(tmp_path / "runs", "aaaaaa")
    record.raise_max_map_count(held, 1_000_000)
    own_sysctl.write_text("3000000")
    record.clean(held)
    assert own_sysctl.read_text() == "3000000"


@pytest.mark.parametrize("first", [0, 1])
def test_the_last_of_several_labs_puts_a_sysctl_back(tmp_path: Path, own_sysctl: Path, first: int) -> None:
    """Of two labs that want a raised value, whichever ends last puts the first one's old value back."""
    both = [Held.make(tmp_path / "runs", name) for name in ("aaaaaa", "bbbbbb")]
    for held in both:
        record.raise_max_map_count(held, 1_000_000)
    record.clean(both[first])
    assert own_sysctl.read_text() == "1000000"
    record.clean(both[1 - first])
    assert own_sysctl.read_text() == "65530"
