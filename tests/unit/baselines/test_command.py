"""`pytest-kvcache baselines list | show | diff` on files that are missing, damaged, older, or not fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvcache.baselines import files, store, tables
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.cli import main
from pytest_kvcache.verdict.cells import Cell, requests_path
from tests.projects import git
from tests.unit.baselines.test_files import root
from tests.unit.baselines.test_migrate import old as schema_2
from tests.unit.verdict.make import CELL, stored

__all__ = ["root"]


def command(root: Path, *args: str) -> int:
    """Run `pytest-kvcache baselines` on a folder."""
    return main(["baselines", "--kv-baselines", str(root), *args])


TABLES: dict[str, tuple[Callable[[bytes], bytes] | None, str]] = {
    "gone": (None, "is missing: context-1000.requests.parquet"),
    "pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\n",
        "is a Git LFS pointer and not the file: run",
    ),
    "cut": (lambda data: data[:-9], "is damaged: it is not the file that its baseline names"),
    "empty": (lambda _: b"", "is damaged: it is not the file that its baseline names"),
    "too long": (lambda data: data + bytes(17 << 20), "is not a baseline: longer than"),
}


@pytest.mark.parametrize("damage", TABLES)
def test_a_table_of_requests_that_cannot_be_read_is_listed(
    root: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """`list` says of each cell whether its requests are missing, are a pointer of Git LFS, or are damaged."""
    assert tables.problems(files.scan(root)) == {}
    table = requests_path(Cell("p", "m", "s3", 1000).path(root))
    change, said = TABLES[damage]
    data = table.read_bytes()
    table.unlink()
    if change:
        table.write_bytes(change(data))
    assert command(root, "list") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " s3 " in line]
    assert f"its table of requests {said}" in line


def test_profile_and_machine_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` has a table for each profile on each machine, whose lines name neither."""
    cells = [Cell(p, m, "s3", tokens) for p, m in (("p", "m"), ("p", "n"), ("q", "m")) for tokens in (1000, 3500)]
    store.write_all(tmp_path, [Write(stored(cell=cell)) for cell in cells])
    assert command(tmp_path, "list") == 0
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    assert [block[0] for block in blocks] == ["p on m:", "p on n:", "q on m:"]
    assert [[line.split()[:2] for line in block[2:]] for block in blocks] == [[["s3", "1000"], ["s3", "3500"]]] * 3
    assert all(line.endswith(" ok") for block in blocks for line in block[2:])


def commit(root: Path) -> None:
    """Make what is in a folder the revision that `diff` compares with."""
    if not (root / ".git").exists():
        git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")


#: What may stand in a baseline's place, and what it is called.
FILES = {
    "half": ("{", "is damaged: it is not a baseline: "),
    "empty": ("", "is damaged: it is not a baseline: "),
    "not an object": ("[]", "is damaged: it is not a baseline: "),
    "without its keys": ('{"schema_version": 3}', "is damaged: it is not a baseline: cell"),
    "pointer": ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer and not the file"),
    "schema 1": ('{"schema_version": 1}', "has schema 1, this version reads 3"),
    "later": ('{"schema_version": 99}', "has schema 99, this version reads 3"),
    "of another place": (
        stored(cell=Cell("p", "m", "s3", 1000)).text(),
        "is the baseline of p/s3/1000, not of this place",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_what_cannot_be_read_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """`show` and `diff` do not call it gone or absent, whichever side it is on, and the exit code is 1."""
    text, said = FILES[what]
    sound = stored().text()
    path = CELL.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(sound)
    commit(tmp_path)
    path.write_text(text)
    assert command(tmp_path, "show", "p/pnfs/1000") == 1
    error = capsys.readouterr().err
    assert f"context-1000.json: {said}" in error
    assert "->" in error or what == "later"
    assert command(tmp_path, "diff") == 1
    out = capsys.readouterr().out
    assert f"p/pnfs/1000 on m: now: {said}" in out
    assert "gone" not in out
    git(tmp_path, "commit", "-qam", "y")
    path.write_text(sound)
    assert command(tmp_path, "diff") == 1
    out = capsys.readouterr().out
    assert f"p/pnfs/1000 on m: HEAD: {said}" in out
    assert "new" not in out
    path.unlink()
    assert command(tmp_path, "diff") == 1
    out = capsys.readouterr().out
    assert "p/pnfs/1000 on m: gone" in out
    assert f"HEAD: {said}" in out


def test_a_damaged_cell_on_another_machine_is_one_of_several(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` takes no sound cell for one that was asked for and is damaged: both are named."""
    path = Cell("p", "m2", "s3", 1000).path(root)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert command(root, "show", "p/s3/1000") == 1
    assert "is there on several machines; known: p/m/s3/1000, p/m2/s3/1000" in capsys.readouterr().err
    assert command(root, "show", "p/m/s3/1000") == 0
    assert command(root, "show", "p/m2/s3/1000") == 1


def test_a_diff_reads_an_older_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of schema 2 are compared as they would be carried over, on either side; nothing is written for that."""
    path = schema_2(tmp_path)
    commit(tmp_path)
    before = path.read_bytes()
    assert command(tmp_path, "diff") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 1 cells differ from HEAD"
    assert path.read_bytes() == before
    assert command(tmp_path, "migrate", "--yes") == 0
    capsys.readouterr()
    assert command(tmp_path, "diff") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 1 cells differ from HEAD"
    data = json.loads(path.read_text())
    assert data["schema_version"] == 3
    data["versions"]["vllm"] = "9.9"
    path.write_text(json.dumps(data))
    assert command(tmp_path, "diff") == 0
    assert "9.9" in capsys.readouterr().out


def test_a_diff_applies_the_filters_of_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables that git keeps elsewhere, as Git LFS does, are fetched as a checkout would, or named as what they are."""
    schema_2(tmp_path)
    (tmp_path / ".gitattributes").write_text("*.parquet filter=kept -text\n")
    kept = tmp_path.parent / f"{tmp_path.name}-kept"
    git(tmp_path, "init", "-q")
    git(
        tmp_path,
        "config",
        "filter.kept.clean",
        f"tee {kept} >/dev/null; echo version https://git-lfs.github.com/spec/v1",
    )
    git(tmp_path, "config", "filter.kept.smudge", f"cat {kept}")
    commit(tmp_path)
    assert command(tmp_path, "diff") == 0
    assert "0 of 1 cells differ" in capsys.readouterr().out
    git(tmp_path, "config", "filter.kept.smudge", "false")
    git(tmp_path, "config", "filter.kept.required", "true")
    assert command(tmp_path, "diff") == 1
    assert "HEAD: has schema 2, this version reads 3" in capsys.readouterr().out


def test_a_link_at_a_revision_is_followed_as_in_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A baseline that is a link to another one in the folder is no damaged file, and one that leads out is refused."""
    path = CELL.path(tmp_path)
    path.parent.mkdir(parents=True)
    (tmp_path / "shared.json").write_text(stored().text())
    path.symlink_to("../../../shared.json")
    commit(tmp_path)
    assert command(tmp_path, "diff") == 0
    path.unlink()
    path.symlink_to("/etc/passwd")
    git(tmp_path, "commit", "-qam", "y")
    capsys.readouterr()
    assert command(tmp_path, "diff") == 1
    assert "HEAD: leads out of the baselines' folder" in capsys.readouterr().out


@pytest.mark.parametrize("revision", ["nowhere", "--all", "HEAD~9"])
def test_a_revision_that_is_none_is_named(root: Path, capsys: pytest.CaptureFixture[str], revision: str) -> None:
    """What git does not know is one line, and never an option of git's."""
    commit(root)
    assert command(root, "diff", "--", revision) == 1
    assert f"git has no revision '{revision}' here" in capsys.readouterr().err


def test_a_diff_without_git_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where git is not installed another folder can be compared with, and a revision is refused in one line."""
    monkeypatch.setenv("PATH", str(root))
    assert command(root, "diff") == 1
    assert "git is not installed" in capsys.readouterr().err


def test_margins_are_those_that_a_session_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` and `show` tell the same margins: of the profile's metrics, over all gates that it declares."""
    store.write_all(tmp_path, [Write(stored(cell=Cell("cpu-nightly", "m", "pnfs", 3500)))])
    assert command(tmp_path, "list") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pnfs ")]
    assert command(tmp_path, "show", "cpu-nightly/pnfs/3500") == 0
    shown = capsys.readouterr().out
    (speed,) = [each.split()[-1] for each in shown.splitlines() if each.lstrip().startswith("processing speed")]
    assert f"speed {speed}" in line
    assert "ttft" not in line
