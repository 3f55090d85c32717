"""All baselines below a folder: list, show, diff, prune, migrate."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from pytest_kvcache.baselines import files, older, store
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import Cell, StoredCell, requests_path
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
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


def rules(_: StoredCell) -> tuple[Policy, int]:
    """Return the default rules, for twelve gates."""
    return Policy(), 12


def test_everything_is_found_in_order(root: Path) -> None:
    """Damaged, old and foreign files are listed with what is wrong; contexts come in the order of numbers."""
    table = files.list_table(files.scan(root), rules)
    assert table["tier"].tolist() == ["cpu"] * 4 + ["pnfs", "pnfs", "s3", "pnfs"]
    assert table["context"].tolist()[4:6] == ["1000", "3500"]
    states = table["state"].tolist()
    assert states[4:] == ["ok", "ok", "too small: gates need 6 boots", "ok"]
    assert sum("has schema 1" in s for s in states) == 1
    assert sum("has schema 99" in s for s in states) == 1
    assert table["boots"].tolist()[4:] == ["6", "6", "3", "6"]
    assert table["sessions"].tolist()[4:] == ["2", "2", "1", "1"]
    assert table["margin"].tolist()[4] == "ttft +12%, speed +12%, decode +12%"


def test_each_file_is_listed_by_the_rules_of_its_profile(tmp_path: Path) -> None:
    """Margins are those of the gates that the profile declares, and what spreads too far for one is no gate."""
    store.write_all(tmp_path, [Write(stored()), Write(stored(cell=OTHER, sd=0.12))])
    found = files.scan(tmp_path)

    def table_of(declared: int) -> pd.DataFrame:
        return files.list_table(found, lambda _: (Policy(metrics=DEFAULT_METRICS[:1]), declared))

    few, many = table_of(3), table_of(96)
    for table in (few, many):
        assert all(margin.startswith("ttft +") for margin in table["margin"])
        assert table["state"].tolist() == ["ok", "spreads too far: ttft may pass at +50% at most"]

    def margins(table: pd.DataFrame) -> list[int]:
        return [int(margin.removeprefix("ttft +").removesuffix("%")) for margin in table["margin"]]

    assert all(less < more for less, more in zip(margins(few), margins(many), strict=True))


def test_an_empty_shelf_is_a_table_without_lines(tmp_path: Path) -> None:
    """No baselines are no error; no folder is one."""
    assert files.list_table(files.scan(tmp_path), rules).empty
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
