"""Components as containers: started, watched, ended, and cleaned up after."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.engine.image import inspect_image
from pytest_kvcache.errors import BootError
from pytest_kvcache.runs import containers, journal, processes
from pytest_kvcache.runs.journal import Journal
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Launch
from pytest_kvcache.serving.launchers.docker import DockerLauncher
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.tiers import catalogue
from tests.stubs.docker import StubContainer, StubDocker

SLEEP = Component("sleep", ("sleep", "60"), "servers")
CATALOGUE = catalogue.load(None)


@pytest.fixture
def session(kvcache_home: Path, tmp_path: Path) -> Iterator[RunSession]:
    """A run."""
    run = RunSession(kvcache_home, tmp_path / "runs", print)
    yield run
    run.close()


@pytest.fixture
def launcher(session: RunSession, daemon: StubDocker) -> DockerLauncher:
    """A launcher for the stub image."""
    return DockerLauncher(launch(session, gpus=0))


def launch(session: RunSession, *, gpus: int) -> Launch:
    """Return a boot of the stub image, whose servers have so many GPUs."""
    profile = CATALOGUE.profiles["cpu-tiny"].model_copy(update={"gpus_per_server": gpus})
    return Launch(session, inspect_image("kv:1", (), None), profile, TierPlan("gpu"))


def ended(handle: Handle) -> int:
    """Wait for the end of a component and return its exit code."""
    deadline = time.monotonic() + 60
    while (code := handle.exit_code()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return code


def test_output_and_secrets(launcher: DockerLauncher, daemon: StubDocker, session: RunSession, tmp_path: Path) -> None:
    """The program gets its secrets and writes to its log; no argument has them, and their file is gone."""
    secret = 'it\'s "s3cret" $HOME'
    command = ("sh", "-c", 'echo "$KEY"; echo "$0 $X" >&2; exit 3', "name")
    handle = launcher.start(Component("c", command, "servers", {"X": "1"}, {"KEY": secret}), tmp_path / "logs")
    assert ended(handle) == 3
    assert handle.log.read_text() == f"{secret}\nname 1\n"
    assert "s3cret" not in str(daemon.created)
    assert list(session.scratch.iterdir()) == []


def test_credentials_of_the_caller(
    launcher: DockerLauncher, daemon: StubDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the caller's environment a server's container gets credentials for models alone, and no argument has them."""
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    monkeypatch.setenv("LMCACHE_CHUNK_SIZE", "64")
    handle = launcher.start(Component("c", ("sh", "-c", 'echo "$HF_TOKEN"'), "servers"), tmp_path / "logs")
    assert ended(handle) == 0
    assert handle.log.read_text() == "hf_s3cret\n"
    assert "s3cret" not in str(daemon.created)
    assert "LMCACHE_CHUNK_SIZE" not in str(daemon.created)


def test_secrets_are_private_while_they_wait(
    launcher: DockerLauncher, session: RunSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the program has read them, nobody else can."""
    for step in ("start", "reload"):
        monkeypatch.setattr(StubContainer, step, lambda _: None)
    launcher.start(Component("c", ("true",), "servers", {}, {"KEY": "s3cret"}), tmp_path / "logs")
    (file,) = session.scratch.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert session.scratch.stat().st_mode & 0o777 == 0o700


def test_exit_codes(launcher: DockerLauncher, tmp_path: Path) -> None:
    """None while it runs, a negative number for a signal, as of a process; a program that is missing says so."""
    handle = launcher.start(SLEEP, tmp_path)
    assert handle.exit_code() is None
    psutil.Process(handle.leader.pid).send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
    assert ended(handle) == -signal.SIGKILL
    missing = launcher.start(Component("m", ("/no/such/program",), "servers"), tmp_path)
    assert ended(missing) == 127
    assert "/no/such/program" in missing.log.read_text()


def test_a_stop_leaves_nothing(
    launcher: DockerLauncher,
    daemon: StubDocker,
    session: RunSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All processes of a container end with it, and it is removed; the journal names none of them any more."""
    monkeypatch.setattr("pytest_kvcache.runs.session.GRACE_S", 0.3)
    family = Component("f", ("sh", "-c", "sleep 61 & sleep 62 & wait"), "servers")
    handles = [launcher.start(SLEEP, tmp_path), launcher.start(family, tmp_path)]
    deadline = time.monotonic() + 60
    while len(living := processes.members(session.journal.record.leaders)) < 4:
        assert time.monotonic() < deadline
    launcher.stop(handles)
    assert not any(_lives(process) for process in living)
    assert daemon.all == []
    assert session.journal.record.leaders == []


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_what_runs_here_is_a_process(
    launcher: DockerLauncher, daemon: StubDocker, session: RunSession, tmp_path: Path
) -> None:
    """A program in place of one that the image lacks is started without Docker, and stopped with the others."""
    object.__setattr__(launcher._engine, "local", {"rclone": Path("/bin/sleep")})
    asked = len(daemon.created)
    handle = launcher.start(Component("s3", ("/bin/sleep", "60"), "storage"), tmp_path)
    assert len(daemon.created) == asked
    launcher.stop([handle])
    assert handle.exit_code() == -signal.SIGTERM


def test_a_daemon_that_refuses(session: RunSession, daemon: StubDocker, tmp_path: Path) -> None:
    """The daemon's own words are the boot's failure, and the container that it made is removed."""
    launcher = DockerLauncher(launch(session, gpus=1))
    with pytest.raises(BootError, match=r"image:kv:1: sleep did not start: docker: could not select device driver"):
        launcher.start(SLEEP, tmp_path)
    launcher.stop([])
    assert daemon.all == []


def test_the_journal_knows_before_a_container_is_made(
    launcher: DockerLauncher,
    session: RunSession,
    socket_of_daemon: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the daemon is first asked for a container, the record on disk has it already."""
    seen: list[str] = []

    def create(*_: object, **__: object) -> None:
        seen.append(json.loads((session.home / "journal" / f"{session.id}.json").read_text())["docker"])
        raise KeyboardInterrupt

    monkeypatch.setattr(StubDocker, "create", create)
    with pytest.raises(KeyboardInterrupt):
        launcher.start(SLEEP, tmp_path)
    assert seen == [socket_of_daemon]


def killed(folder: Path, run_id: str, host: str) -> None:
    """Leave the journal of a run that was killed."""
    code = (
        "import os, sys; from pathlib import Path; from pytest_kvcache.runs.journal import Journal\n"
        "Journal(Path(sys.argv[1]), sys.argv[2]).note_docker(sys.argv[3]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), run_id, host], check=False)


def test_containers_of_a_killed_run_are_removed(daemon: StubDocker, socket_of_daemon: str, tmp_path: Path) -> None:
    """The next run removes exactly those with the dead run's label."""
    for run_id in ("dead", "other"):
        daemon.create(name=run_id, labels={containers.LABEL: run_id})
    killed(tmp_path, "dead", socket_of_daemon)
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path, said.append)
    assert [each.id for each in daemon.all] == ["other"]
    assert said == [
        "cleaned up after run dead, which was killed: 0 processes ended, 0 folders removed, 1 containers removed"
    ]
    assert list(tmp_path.glob("dead*")) == []


def test_a_daemon_that_is_gone_is_asked_again(daemon: StubDocker, socket_of_daemon: str, tmp_path: Path) -> None:
    """Without the daemon the journal stays, says so, and the run after next cleans up."""
    daemon.create(name="dead", labels={containers.LABEL: "dead"})
    killed(tmp_path, "dead", "unix:///nowhere.sock")
    said: list[str] = []
    journal.clean_up_after_the_dead(tmp_path, said.append)
    assert "containers of run dead may be left" in said[0]
    record = tmp_path / "dead.json"
    record.write_text(record.read_text().replace("unix:///nowhere.sock", socket_of_daemon))
    journal.clean_up_after_the_dead(tmp_path, said.append)
    assert daemon.all == []
    assert not record.exists()


def test_a_run_that_cannot_clean_up_leaves_its_journal(
    session: RunSession, daemon: StubDocker, kvcache_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the end of a run whose daemon has died, the next one gets to know."""
    session.journal.note_docker("unix:///nowhere.sock")
    session.close()
    assert "may be left" in capsys.readouterr().out
    assert (kvcache_home / "journal" / f"{session.id}.json").exists()
    Journal(kvcache_home / "journal", session.id).close()  # its lock is free
