"""What past runs say: which commit and versions moved a cell, whatever the state of the files."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1", b"version https://git-lfs"])
def test_a_query_leaves_damaged_tables_out(runs: Path, capsys: Printed, content: bytes) -> None:
    """A table of requests that cannot be read is named and left out; where all are damaged, the query says so."""
    tables = sorted(runs.rglob("requests.parquet"))
    tables[0].write_bytes(content)
    query = "select count(*) as n from requests where status = 'ok'"
    assert history(runs, "--sql", query) == 0
    (why, _, n) = capsys.readouterr().out.strip().splitlines()
    assert why.startswith("left out: ")
    assert str(tables[0]) in why
    assert n.split() == [str(13 * 5)]
    for path in tables:
        path.write_bytes(content)
    assert history(runs, "--sql", query) == 1
    assert "--sql: DuckDB: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [(), ("--sql", "select profile, machine, commit, versions from loads")])
def test_names_steer_no_terminal(runs: Path, capsys: Printed, command: tuple[str, ...]) -> None:
    """Control characters and line ends in what a run.json says are shown as text, within their line."""
    assert history(runs, *command) == 0
    plain = capsys.readouterr().out
    hostile = "\x1b[2J\x9b\u202e\nx"
    for at in (7, 8):
        session = {"profile": f"q{hostile}", "machine": hostile, "commit": f"{at}{hostile}"}
        left(runs / f"run-{at}", session=session, versions={hostile: f"{at}{hostile}"}, load={"started_at": 1.8e9 + at})
    assert history(runs, *command) == 0
    found = capsys.readouterr().out
    assert "\\u001b[2J" in found
    assert not set("\x1b\x9b\u202e") & set(found)
    assert not [line for line in found.splitlines() if line.startswith("x")]
    assert len(found.splitlines()) > len(plain.splitlines())


def test_an_unknown_cell_and_folder_are_named(runs: Path, capsys: Printed) -> None:
    """The error says which cells are there."""
    assert history(runs, "s3/1") == 1
    assert "known cells: pnfs/9000" in capsys.readouterr().err
    assert history(runs / "no") == 1
    assert "no such folder of runs" in capsys.readouterr().err


def test_without_duckdb_only_queries_are_refused(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    """Where the extra is not installed, `--sql` names the command that installs it, and the history itself is there."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert history(runs, "--sql", "select 1") == 1
    assert "needs DuckDB, which is not installed\n  -> pip install 'pytest-kvcache[history]'" in capsys.readouterr().err
    assert history(runs, "--figure", "tokens_per_s") == 0
    assert "MOVED" in capsys.readouterr().out


#: Values of any type and size that a key of run.json may wrongly have.
ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**30, -(10**400), 2**63, 1e308, -1e308, 1e-320, float("nan"), float("inf")]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["\ud800", "\0", "\x1b[2J", "/", "9000", "9" * 400]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
#: Keys of run.json that the history reads, and some beside them.
KEYS = st.sampled_from(
    [
        *("label", "comparability", "versions", "settings", "commands", "load", "estimates", "faults", "imported"),
        *("session", "load.started_at", "load.elapsed_s", "estimates.tokens_per_s", "versions.lmcache"),
        *("session.commit", "session.profile", "comparability.workload\0context_tokens", "more"),
    ]
)


def changed(facts: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return run.json with another value at a key."""
    first, _, rest = key.partition(".")
    inner = facts.get(first)
    below = changed(inner if isinstance(inner, dict) else {}, rest, value) if rest else value
    return facts | {first.replace("\0", "."): below}


def cut(content: bytes, at: float, flip: int) -> bytes:
    """Return the beginning of a file, with one of its bytes changed."""
    kept = bytearray(content[: round(len(content) * at)])
    if kept and flip:
        kept[flip % len(kept)] ^= 1 + flip % 255
    return bytes(kept)


DAMAGE = st.one_of(
    st.tuples(st.just("key"), KEYS, ANYTHING),
    st.tuples(st.sampled_from(["run.json", "requests.parquet", "index"]), st.floats(0, 1), st.integers(0, 1 << 20)),
    st.tuples(st.just("folder"), st.sampled_from(["run.json", "requests.parquet"]), st.none()),
)
COMMANDS = (
    (),
    ("--figure", "tokens_per_s", "--figure", "none"),
    ("--sql", "select count(*), max(figures['tokens_per_s']) from loads"),
    ("--sql", "select count(*), min(due_s) from requests"),
)


@settings(max_examples=25)
@given(st.lists(DAMAGE, max_size=4))
@example([("key", "load.started_at", 1e308)])
@example([("key", "session", {"profile": "\ud800"})])
@example([("run.json", 0.0, 0), ("requests.parquet", 0.0, 0), ("index", 0.0, 0)])
def test_damaged_folders_of_runs_never_end_in_a_traceback(damage: list[tuple[str, Any, Any]]) -> None:
    """Whatever became of files and keys, the history ends with the loads that can be read or with one error."""
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        loads = [left(runs / f"run-{at}", load={"started_at": 1.7e9 + at}) for at in range(3)]
        index.read(runs)
        for at, (what, where, value) in enumerate(damage):
            folder = loads[at % 2]
            if what == "key":
                path = folder / "run.json"
                with contextlib.suppress(ValueError, OSError):  # damaged before
                    path.write_text(json.dumps(changed(json.loads(path.read_bytes()), where, value)))
            elif what == "folder":
                with contextlib.suppress(OSError):
                    (folder / where).unlink()
                    (folder / where).mkdir()
            else:
                path = index.index_path(runs) if what == "index" else folder / what
                with contextlib.suppress(OSError):
                    path.write_bytes(cut(path.read_bytes(), where, value))
        for command in COMMANDS:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = history(runs, *command)
            assert code in {0, 1}
            assert err.getvalue().startswith("pytest-kvcache: " if code else "")
            assert bool(err.getvalue()) is bool(code)
            assert "Traceback" not in err.getvalue()
