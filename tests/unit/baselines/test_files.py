"""All baselines below a folder: list, show, diff, prune, migrate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_kvcache.baselines import files, older, store
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.cli import main
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import Cell, requests_path
from tests.projects import git
from tests.unit.baselines.test_migrate import old as schema_2
from tests.unit.baselines.test_store import recorded
from tests.unit.verdict.make import CELL, sibling, stored

OTHER = Cell("p", "other-machine", "pnfs", 1000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two contexts of a tier, a small cell with requests, one on another machine, an old and a damaged file."""
    small = recorded(Cell("p", "m", "s3", 1000))
    store.write_all(tmp_path, [Write(stored()), Write(sibling()), small, Write(stored(cell=OTHER, sessions=1))])
    old = Cell("p", "m", "cpu", 1000).path(tmp_path)
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"schema_version": 1, "estimates": {}}))
    Cell("p", "m", "cpu", 2000).path(tmp_path).write_text("{")
    Cell("p", "m", "cpu", 3000).path(tmp_path).write_text(json.dumps({"schema_version": 99}))
    (old.parent / "notes.json").write_text("{}")
    return tmp_path


def test_everything_is_found_in_order(root: Path) -> None:
    """Damaged, old and foreign files are listed with what is wrong; contexts come in the order of numbers."""
    table = files.list_table(files.scan(root), family=12)
    assert table["tier"].tolist() == ["cpu"] * 4 + ["pnfs", "pnfs", "s3", "pnfs"]
    assert table["context"].tolist()[4:6] == ["1000", "3500"]
    states = table["state"].tolist()
    assert states[4:] == ["ok", "ok", "too small: gates need 6 boots", "ok"]
    assert sum("has schema 1" in s for s in states) == 1
    assert sum("has schema 99" in s for s in states) == 1
    assert table["boots"].tolist()[4:] == ["6", "6", "3", "6"]
    assert table["sessions"].tolist()[4:] == ["2", "2", "1", "1"]
    assert table["margin"].tolist()[4] == "+12%"
    assert len(files.list_table(files.scan(root))) == 8


def test_an_empty_shelf_is_a_table_without_lines(tmp_path: Path) -> None:
    """No baselines are no error; no folder is one."""
    assert files.list_table(files.scan(tmp_path)).empty
    with pytest.raises(BaselineError, match="not a folder"):
        files.scan(tmp_path / "none")


def test_a_cell_is_shown(root: Path) -> None:
    """Levels with interval, spread and margin; every boot; every key."""
    cells = files.readable(files.scan(root))
    (mine,) = (c for c in cells if c.address == CELL)
    shown = files.show(mine, cells, family=12)
    assert shown.levels["metric"].tolist()[0] == "TTFT (s)"
    assert shown.levels["boot sd"].tolist() == ["3.0%"] * 3
    assert " … " in shown.levels["95 % interval"][0]
    assert len(shown.boots) == 6
    assert ["must be equal", "hardware.cpu", "x"] in shown.keys.to_numpy().tolist()
    assert ["recorded", "vllm", "1"] in shown.keys.to_numpy().tolist()
    single = files.show(stored([0.0]), family=12)
    assert single.levels["margin"].tolist() == ["-"] * 3


def test_unused_cells_of_this_machine(root: Path) -> None:
    """A full run reports the cells that it did not use; those of other machines are not its affair."""
    left = files.unused(files.scan(root), {CELL, Cell("p", "m", "s3", 1000)})
    assert {f.cell for f in left} == {sibling().address, *(Cell("p", "m", "cpu", n) for n in (1000, 2000, 3000))}


def test_pruning_removes_what_belongs_to_no_cell(root: Path) -> None:
    """Orphaned requests, left-over temporaries and the cells asked for go, with their empty folders; no more."""
    gone = Cell("p", "m", "s3", 1000)
    orphan = requests_path(CELL.path(root))
    orphan = orphan.with_name("context-9.requests.parquet")
    orphan.write_bytes(b"x")
    temporary = orphan.with_name(".context-1000.json.abc")
    temporary.write_bytes(b"x")
    link = orphan.with_name("context-8.requests.parquet")
    link.symlink_to(root)
    paths = files.removable(root, {gone})
    assert set(paths) == {orphan, temporary, gone.path(root), requests_path(gone.path(root))}
    files.prune(root, paths)
    assert not gone.path(root).parent.exists()
    assert CELL.path(root).exists()
    assert files.removable(root) == ()


def test_pruning_stays_below_its_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A path outside of the folder removes nothing at all."""
    outside = tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("x")
    with pytest.raises(BaselineError, match="not below"):
        files.prune(root, [CELL.path(root), outside])
    assert outside.exists()
    assert CELL.path(root).exists()


def test_migration_names_the_command(root: Path) -> None:
    """Schema 1 cannot be carried over and names what records it anew; a later one asks for an update."""
    old, later = older.migrations(root, files.scan(root))
    assert old.command == "pytest -m perf --tier cpu --kv-profile p --update-baselines"
    assert "no boots" in old.reason
    assert (later.schema, later.command) == (99, "")
    assert "update" in later.reason


def test_a_file_in_the_wrong_place_is_listed_as_such(tmp_path: Path) -> None:
    """A copied file says whose it is."""
    path = Cell("p", "m", "pnfs", 2000).path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(stored().text())
    (found,) = files.scan(tmp_path)
    assert "p/pnfs/1000" in found.problem


def command(root: Path, *args: str) -> int:
    """Run `pytest-kvcache baselines` on a folder."""
    return main(["baselines", "--kv-baselines", str(root), *args])


@pytest.mark.parametrize("damage", ["gone", "pointer", "cut"])
def test_a_table_of_requests_that_cannot_be_read_is_listed(
    root: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """`list` says of each cell whether its requests are there, are a pointer of Git LFS, or are damaged."""
    table = requests_path(Cell("p", "m", "s3", 1000).path(root))
    data = table.read_bytes()
    table.unlink()
    if damage != "gone":
        table.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" if damage == "pointer" else data[:-9])
    assert command(root, "list") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " s3 " in line]
    told = {"gone": "are not there", "pointer": "is a Git LFS pointer", "cut": "SHA-256 differs"}
    assert f"its requests: {told[damage]}" in line.replace("the requests of this baseline ", "") or told[damage] in line


def test_a_damaged_cell_is_called_damaged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` and `diff` do not call it gone or absent, whichever side is damaged."""
    assert command(root, "show", "p/cpu/2000") == 1
    assert "context-2000.json: is damaged: is not a baseline" in capsys.readouterr().err
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")
    sound = CELL.path(root).read_text()
    CELL.path(root).write_text("{")
    assert command(root, "diff") == 0
    out = capsys.readouterr().out
    assert "p/pnfs/1000 on m: now: is not a baseline" in out
    assert "gone" not in out
    git(root, "commit", "-qam", "y")
    CELL.path(root).write_text(sound)
    assert command(root, "diff") == 0
    out = capsys.readouterr().out
    assert "p/pnfs/1000 on m: HEAD: is not a baseline" in out
    assert "new" not in out


def test_a_diff_reads_an_older_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a file is carried over, `diff` compares with it as it would be; nothing is written for that."""
    path = schema_2(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    assert command(tmp_path, "migrate", "--yes") == 0
    capsys.readouterr()
    assert command(tmp_path, "diff") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 1 cells differ from HEAD"
    assert json.loads(path.read_text())["schema_version"] == 3
