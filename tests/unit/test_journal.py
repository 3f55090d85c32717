"""Journals of runs that are dead: cleaned up after, or kept for as long as anything of theirs may be left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.errors import RunError
from pytest_kvcache.runs import files, journal, processes
from pytest_kvcache.runs.journal import Journal
from pytest_kvcache.runs.session import RunSession


def test_a_living_run_is_not_cleaned_up_after(tmp_path: Path) -> None:
    """A journal whose run lives is left alone, with all that it names."""
    folder = tmp_path / "scratch"
    alive = Journal(tmp_path / "journal", "r1")
    alive.add_folder(folder)
    folder.mkdir()
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert folder.exists()
    assert said == []
    alive.close()


def test_a_dead_run_is_cleaned_up_after_and_nothing_else(tmp_path: Path) -> None:
    """Exactly the folders of a dead run go; its neighbours stay."""
    code = (
        "import os, sys; from pathlib import Path; from pytest_kvcache.runs.journal import Journal\n"
        "root = Path(sys.argv[1]); j = Journal(root / 'journal', 'dead')\n"
        "j.add_folder(root / 'mine'); (root / 'mine' / 'deep').mkdir(parents=True); (root / 'other').mkdir()\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "other").exists()
    assert said == ["cleaned up after run dead, which was killed: 0 processes ended, 1 folders removed"]
    assert list((tmp_path / "journal").iterdir()) == []


VERSION_1 = {"run_id": "x", "boot": 1.0, "leaders": [{"pid": 1, "started": 1.0, "log": "/x"}], "folders": ["FOLDER"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("\0\0\0", "cannot be read"),
        ('{"run_id": 1}', "another version of pytest-kvcache (layout 1)"),
        (json.dumps(VERSION_1), "another version of pytest-kvcache (layout 1)"),
        ('{"version": 99, "run_id": "x"}', "another version of pytest-kvcache (layout 99)"),
        ('{"version": 2, "run_id": "x", "boot_id": "b", "leaders": [{"pid": 1}]}', "cannot be read"),
        ('{"version": 2, "run_id": "x", "boot_id": "b", "more": 1, "leaders": []}', "cannot be read"),
        ('{"version": 2, "run_id": "x", "boot_id": "b", "folders": "FOLDER"}', "cannot be read (folders: "),
        ('{"version": 2, "run_id": "x", "boot_id": "b", "folders": [["FOLDER"]]}', "cannot be read (folders.0: "),
        ('{"version": 2, "run_id": "x", "boot_id": "b", "leaders": {"FOLDER": 1}}', "cannot be read (leaders: "),
        ('{"version": true, "folders": ["FOLDER"]}', "another version of pytest-kvcache (layout True)"),
        ('{"version": "2", "folders": ["FOLDER"]}', "another version of pytest-kvcache (layout 2)"),
        ("[" * 100_000, "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_journal_that_says_nothing_is_kept_and_said(tmp_path: Path, text: str, said: str) -> None:
    """Whatever it names may still be there: nothing is ended or removed, and each run says where to look."""
    kept = tmp_path / "folder"
    kept.mkdir()
    path = tmp_path / "x.json"
    content = text.replace("FOLDER", str(kept)).encode(errors="surrogateescape")
    path.write_bytes(content)
    for _ in range(2):
        lines: list[str] = []
        journal.clean_up_after_the_dead(tmp_path, lines.append)
        assert [said in line and str(path) in line for line in lines] == [True]
    assert path.read_bytes() == content
    assert kept.is_dir()


def test_a_journal_that_was_cut_anywhere_is_kept(tmp_path: Path) -> None:
    """However much of a journal reached the disk, what it names stays until all of it can be read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    alive = Journal(tmp_path / "journal", "x")
    alive.add_folder(folder)
    alive.add_leader(processes.Leader(pid=1, start_ticks=1, log="/x.log"))
    whole = (tmp_path / "journal" / "x.json").read_bytes()
    alive.abandon()
    for length in range(len(whole)):
        (tmp_path / "journal" / "x.json").write_bytes(whole[:length])
        lines: list[str] = []
        journal.clean_up_after_the_dead(tmp_path / "journal", lines.append)
        assert [line.startswith("the journal of run x ") for line in lines] == [True]
        assert folder.is_dir()
    (tmp_path / "journal" / "x.json").write_bytes(whole)
    journal.clean_up_after_the_dead(tmp_path / "journal", lambda _: None)
    assert not folder.exists()


def _dead_run(root: Path, *, then: str = "") -> subprocess.Popen[bytes]:
    """Return a process of a run whose journal names it and that was killed."""
    log = root / "x.log"
    with log.open("wb") as out:
        left = subprocess.Popen(["sleep", "60"], stdout=out, start_new_session=True)
    code = (
        "import os, sys; from pathlib import Path; from pytest_kvcache.runs import journal, processes\n"
        "root = Path(sys.argv[1]); j = journal.Journal(root / 'journal', 'dead')\n"
        f"j.add_leader(processes.leader_of({left.pid}, root / 'x.log'))\n{then}\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    return left


@pytest.mark.parametrize("shift_s", [3600.0, -3600.0, 90.0, -1.5])
def test_a_clock_that_was_set_hides_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift_s: float) -> None:
    """What a killed run left is found by boot id and clock ticks, whatever the clock says by then."""
    left = _dead_run(tmp_path)
    real, created = psutil.boot_time(), psutil.Process.create_time
    # The kernel counts from its start: what is told as a time since the epoch moves with the clock.
    monkeypatch.setattr(psutil, "boot_time", lambda: real + shift_s)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + shift_s)
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert said == ["cleaned up after run dead, which was killed: 1 processes ended, 0 folders removed"]
    assert left.wait(60) == -signal.SIGTERM


def test_processes_of_an_earlier_boot_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the machine was started anew the same numbers are others': nothing is ended."""
    left = _dead_run(tmp_path)
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert said == ["cleaned up after run dead, which was killed: 0 processes ended, 0 folders removed"]
    assert left.poll() is None
    left.kill()
    left.wait()


def test_a_journal_stays_while_its_processes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be ended keeps the record of its run, and is named."""
    left = _dead_run(tmp_path)
    monkeypatch.setattr(processes, "end", lambda *_, **__: [])
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert said == [f"processes of run dead, which was killed, do not end: {left.pid}"]
    assert (tmp_path / "journal" / "dead.json").exists()
    monkeypatch.undo()
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert not (tmp_path / "journal" / "dead.json").exists()
    left.wait(60)


def test_a_container_s_processes_are_ended_by_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that this user may not end are looked for again once the daemon has removed their container."""
    left = _dead_run(tmp_path, then="j.note_docker('unix:///x')")

    def remove(run_id: str, host: str) -> int:
        assert (run_id, host) == ("dead", "unix:///x")
        left.kill()
        left.wait()
        return 1

    monkeypatch.setattr(processes, "end", lambda *_, **__: [])
    monkeypatch.setattr("pytest_kvcache.runs.containers.remove", remove)
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert said == [
        "cleaned up after run dead, which was killed: 1 processes ended, 0 folders removed, 1 containers removed"
    ]


def test_a_journal_stays_while_its_folders_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be removed keeps the record of its run, and is named."""
    folder = tmp_path / "mine"
    left = _dead_run(tmp_path, then="j.add_folder(root / 'mine'); (root / 'mine').mkdir()")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    kept = f"{folder} (is its file system read-only?)"
    assert said == [f"folders of run dead, which was killed, cannot be removed: {kept}"]
    monkeypatch.undo()
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert list((tmp_path / "journal").iterdir()) == []
    assert not folder.exists()
    left.wait(60)


def test_a_folder_whose_storage_is_dead_holds_up_no_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing waits for a limited time; the folder is named, and the record of the run stays for the next one."""
    dead = threading.Event()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: dead.wait(60))
    monkeypatch.setattr(files.remove_tree, "__kwdefaults__", {"limit_s": 0.2})
    said: list[str] = []
    session = RunSession(tmp_path / "home", tmp_path / "runs", said.append)
    (tmp_path / "mine").mkdir()
    session.own_folder(tmp_path / "mine")
    session.close()
    dead.set()
    (line,) = (line for line in said if "/mine:" in line)
    assert re.fullmatch(r"could not remove .*/mine: .* gave no answer within 0 s\. The next run tries again", line)
    monkeypatch.undo()
    journal.clean_up_after_the_dead(tmp_path / "home" / "journal", said.append)
    assert not (tmp_path / "mine").exists()


def test_a_run_that_cannot_end_its_processes_leaves_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run forgets nothing that still lives, and says so; the next run ends it."""
    said: list[str] = []
    session = RunSession(tmp_path / "home", tmp_path / "runs", said.append)
    log = tmp_path / "x.log"
    with log.open("wb") as out:
        left = subprocess.Popen(["sleep", "60"], stdout=out, start_new_session=True)
    leader = processes.leader_of(left.pid, log)
    session.own_process(leader)
    monkeypatch.setattr(processes, "end", lambda *_, **__: [])
    session.end_processes([leader])
    session.close()
    assert said == [f"processes of this run do not end, the next one tries again: {left.pid}"]
    monkeypatch.undo()
    journal.clean_up_after_the_dead(tmp_path / "home" / "journal", said.append)
    assert left.wait(60) == -signal.SIGTERM
    assert list((tmp_path / "home" / "journal").iterdir()) == []


def test_nothing_is_made_once_the_run_has_ended(tmp_path: Path) -> None:
    """What another thread would make then is refused, and no part of the record comes back."""
    session = RunSession(tmp_path / "home", tmp_path / "runs", print)
    session.close()
    with pytest.raises(RunError, match="the run has ended"), session.making():
        (tmp_path / "made").mkdir()
    session.note_shared_memory()
    session.end_processes([])
    assert not (tmp_path / "made").exists()
    assert list((tmp_path / "home" / "journal").iterdir()) == []


def test_the_end_waits_for_what_is_being_made(tmp_path: Path) -> None:
    """What is being started and made while other threads end the run is recorded first, and gone after either end."""
    session = RunSession(tmp_path / "home", tmp_path / "runs", print)
    log, mine = tmp_path / "x.log", tmp_path / "mine"
    ends = [threading.Thread(target=session.close) for _ in range(2)]
    with session.making(), log.open("wb") as out:
        for each in ends:
            each.start()
        time.sleep(0.2)
        left = subprocess.Popen(["sleep", "60"], stdout=out, start_new_session=True)
        session.own_process(processes.leader_of(left.pid, log))
        session.own_folder(mine)
        mine.mkdir()
    ends[0].join()
    first = (left.poll(), mine.exists(), list((tmp_path / "home" / "journal").iterdir()))
    ends[1].join()
    assert first == (-signal.SIGTERM, False, [])


def test_a_kernel_that_names_no_boot_is_lived_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc has no boot id a run still starts, and clock ticks alone tell its processes from others."""
    monkeypatch.setattr(journal, "_BOOT_ID", tmp_path / "nowhere")
    alive = Journal(tmp_path / "journal", "x")
    alive.add_leader(processes.Leader(pid=os.getppid(), start_ticks=1, log="/x.log"))
    alive.abandon()
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert said == ["cleaned up after run x, which was killed: 0 processes ended, 0 folders removed"]
