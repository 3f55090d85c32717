"""What past runs say: which commit and versions moved a cell, whatever the state of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.cli import main
from pytest_kvcache.history import index, moves
from tests.unit.interop.make import left

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three boots with LMCache 0.5.5, then three with 0.5.6 that are 15 % slower, of two commits."""
    for at, speed in enumerate((3000.0, 3030.0, 2970.0, 2550.0, 2575.0, 2525.0)):
        left(
            tmp_path / "runs" / f"run-{at}",
            versions={"lmcache": "0.5.5" if at < 3 else "0.5.6"},
            session={"profile": "p", "machine": "m", "commit": ("a" if at < 3 else "b") * 40},
            load={"started_at": 1.7e9 + at * 3600},
            estimates={"tokens_per_s": speed},
        )
    return tmp_path / "runs"


def history(runs: Path, *more: str) -> int:
    """Run the command on a folder of runs; return the exit code."""
    return main(["history", f"--kv-runs={runs}", *more])


def test_the_change_that_moved_a_cell_is_named(runs: Path, capsys: Printed) -> None:
    """The first run of the new state is printed with commit, versions, change and interval."""
    assert history(runs, "p/pnfs/9000", "--figure", "tokens_per_s") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "MOVED" in line)
    assert "run-3" in line
    assert "-15.0%" in line
    assert "commit aaaaaaaaaa → bbbbbbbbbb; lmcache 0.5.5 → 0.5.6" in line


def test_single_boots_are_called_no_move(runs: Path) -> None:
    """With a boot a state the spread is not known, and nothing is called a move."""
    rows = index.frame(index.read(runs)).iloc[[0, 3]]
    _, last = moves.states(rows, "tokens_per_s")
    assert last.change == pytest.approx(-0.15)
    assert not last.moved


def test_invalid_and_damaged_loads_are_in_no_figure(runs: Path, capsys: Printed) -> None:
    """An invalid load counts for nothing; a damaged file is named with its key."""
    left(runs / "run-7", faults=["off"], estimates={"tokens_per_s": 1.0})
    (left(runs / "run-8") / "run.json").write_text('{"label": 1}')
    assert history(runs, "pnfs/9000", "--figure", "tokens_per_s") == 0
    output = capsys.readouterr().out
    assert "run-8/pnfs/boot-1/context-9000/run.json: label: " in output
    assert "run-7" not in output


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 99])
def test_a_damaged_index_is_made_anew(runs: Path, content: bytes) -> None:
    """The index holds nothing of its own: where it is damaged, all runs are read again."""
    first = index.read(runs)
    index.index_path(runs).write_bytes(content)
    assert index.read(runs).equals(first)


def test_the_index_follows_the_files(runs: Path) -> None:
    """A run that changed is read again, and one that is gone is gone."""
    index.read(runs)
    path = runs / "run-0" / "pnfs" / "boot-1" / "context-9000" / "run.json"
    path.write_text("{")
    (runs / "run-1" / "pnfs" / "boot-1" / "context-9000" / "run.json").unlink()
    rows = index.frame(index.read(runs))
    assert len(rows) == 5
    assert (rows["error"] != "").sum() == 1


def test_queries_of_one_s_own(runs: Path, capsys: Printed) -> None:
    """DuckDB answers over loads and over the runs' own request tables; a wrong query is an error in one line."""
    query = "select count(*) as n, max(figures['tokens_per_s']) as best from loads"
    assert history(runs, "--sql", query) == 0
    assert capsys.readouterr().out.split() == ["n", "best", "6", "3030.0"]
    assert history(runs, "--sql", "select count(*) as n from requests where status = 'ok'") == 0
    assert capsys.readouterr().out.split() == ["n", str(13 * 6)]
    assert history(runs, "--sql", "select nothing") == 1
    assert "--sql: DuckDB: " in capsys.readouterr().err


def test_an_unknown_cell_and_folder_are_named(runs: Path, capsys: Printed) -> None:
    """The error says which cells are there."""
    assert history(runs, "s3/1") == 1
    assert "known cells: pnfs/9000" in capsys.readouterr().err
    assert history(runs / "no") == 1
    assert "no such folder of runs" in capsys.readouterr().err
