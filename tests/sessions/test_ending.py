"""However a session ends, it leaves nothing; one that is killed is cleaned up after by the next."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.projects import NOTHING, Project, Session, configure, ours, run, run_folder, traces
from tests.stubs.engine import toml


def shared_memory_of(session: Session) -> list[Path]:
    """Return the shared memory and semaphores that the session's servers say they have made."""

    def said() -> list[Path]:
        lines = [line for line in session.logs("vllm-*.log") if line.startswith("SHM ")]
        return [Path(name) for line in lines for name in line.split()[1:]]

    session.wait_for(lambda: len(said()) == 4)
    assert all(segment.exists() for segment in said())
    return said()


@pytest.fixture
def long_run(project: Project) -> Project:
    """A project whose workload takes a minute."""
    configure(project, toml(duration_s=60, qps=5))
    return project


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_booting(project: Project, kvcache_home: Path, number: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP during the boot leave nothing."""
    configure(project, toml(vllm_args='"--stub-boot", "60"'))
    session = Session(project, "--tier", "pnfs")
    session.wait_for_boot()
    segments = shared_memory_of(session)
    assert session.end(number) != 0
    assert traces(project.path, kvcache_home) == NOTHING
    assert not any(segment.exists() for segment in segments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_under_load(long_run: Project, kvcache_home: Path, number: int) -> None:
    """Ctrl-C and SIGTERM during the load leave nothing but the rows that were measured."""
    session = Session(long_run, "--tier", "s3")
    session.wait_for_load()
    segments = shared_memory_of(session)
    assert session.end(number) != 0
    assert traces(long_run.path, kvcache_home) == NOTHING
    assert not any(segment.exists() for segment in segments)
    rows = pd.read_parquet(run_folder(long_run) / "s3" / "boot-1" / "context-50" / "requests.parquet")
    assert (rows["status"] == "ok").any()


def test_nohup_outlives_its_terminal(project: Project, kvcache_home: Path) -> None:
    """`nohup pytest` is not ended by the SIGHUP of a terminal that goes away, whenever that comes."""
    configure(project, toml(duration_s=2, qps=5))
    session = Session(project, "--tier", "gpu", "--record-baselines", ignoring=[signal.SIGHUP])
    session.wait_for_boot()
    session.process.send_signal(signal.SIGHUP)
    session.wait_for_load()
    session.process.send_signal(signal.SIGHUP)
    assert session.ended() == 0, session.out.read_text()
    assert traces(project.path, kvcache_home) == NOTHING


def test_an_interrupted_update_writes_no_baseline(project: Project) -> None:
    """Ctrl-C in the middle of --update-baselines leaves every stored cell as it was, and says so."""
    configure(project, toml(contexts=(20, 50), duration_s=4))
    session = Session(project, "--tier", "gpu", "--update-baselines")
    session.wait_for(lambda: len(list(session.path.rglob("plan.json"))) == 2)
    assert session.end(signal.SIGINT) == pytest.ExitCode.INTERRUPTED
    assert "no baseline was written" in session.out.read_text()
    assert not list((project.path / "baselines").rglob("*.json"))


def test_interrupted_twice(long_run: Project, kvcache_home: Path) -> None:
    """A second and third Ctrl-C during the clean-up do not cut it short."""
    session = Session(long_run, "--tier", "cpu")
    session.wait_for_load()
    session.process.send_signal(signal.SIGINT)
    for _ in range(5):
        time.sleep(0.3)
        if session.process.poll() is None:
            session.process.send_signal(signal.SIGINT)
    session.ended()
    assert traces(long_run.path, kvcache_home) == NOTHING


def test_killed_then_cleaned_up_by_the_next_run(project: Project, kvcache_home: Path) -> None:
    """After kill -9 the servers still run; the next run ends exactly those, and says so."""
    configure(project, toml(duration_s=60, qps=5))
    session = Session(project, "--tier", "pnfs")
    session.wait_for_load()
    segments = shared_memory_of(session)
    session.end(signal.SIGKILL)
    left = ours(project.path)
    assert len(left) >= 6
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        configure(project, toml(duration_s=0.5))
        result = run(project, "--tier", "gpu", "--record-baselines")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    result.assert_outcomes(passed=3)
    assert re.search(r"cleaned up after run \S+, which was killed: \d+ processes ended", result.stdout.str())
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left)
    assert traces(project.path, kvcache_home) == NOTHING
    assert not any(segment.exists() for segment in segments)


def test_two_runs_at_once(project: Project, kvcache_home: Path) -> None:
    """Two runs on one machine share neither ports nor folders, and neither cleans up after the other."""
    configure(project, toml(duration_s=3))
    one = Session(project, "--tier", "pnfs", "--kv-baselines=one", "--record-baselines")
    one.wait_for_load()
    two = run(project, "--tier", "pnfs", "--kv-baselines=two", "--record-baselines")
    two.assert_outcomes(passed=3)
    assert one.ended() == 0, one.out.read_text()
    assert "cleaned up" not in two.stdout.str()
    assert len(list((project.path / ".kvcache" / "runs").iterdir())) == 2
    assert traces(project.path, kvcache_home) == NOTHING
