"""A session waits for another on the same machine, or names it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pytest_kvcache.runs.machine import PROCESSORS, VARIABLE, MachineLock
from tests.neighbours import HERE
from tests.projects import Project, configure
from tests.stubs.engine import toml


def test_a_session_that_may_not_wait_names_the_holder(
    project: Project, monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen[str]
) -> None:
    """It ends before anything boots; what only collects, and other people's tests, run beside it."""
    monkeypatch.setenv(VARIABLE, HERE[VARIABLE])
    configure(project, toml())
    result = project.runpytest_inprocess("--tier", "gpu", "--kv-wait", "0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"another session measures on it: `{sys.executable}" in result.stderr.str()
    assert f"(pid {other.pid} of " in result.stderr.str()
    assert not list((project.path / ".kvcache").rglob("*.log"))
    assert project.runpytest_inprocess("--tier", "gpu", "--collect-only").ret == 0


def test_a_session_waits_for_another(
    project: Project, monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen[str]
) -> None:
    """It says for whom, measures once the other has ended, and leaves the machine to the next."""
    monkeypatch.setenv(VARIABLE, HERE[VARIABLE])
    configure(project, toml())
    threading.Timer(1.5, other.kill).start()
    result = project.runpytest_inprocess("--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [f"kvcache: the processors of this machine: waiting for *pid {other.pid} of *--kv-wait*"]
    )
    lock = MachineLock([PROCESSORS], HERE)
    lock.acquire(0, print)
    lock.release()


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_none(project: Project, value: str) -> None:
    """The ini key is checked like the option."""
    configure(project, toml())
    result = project.runpytest_inprocess("--tier", "gpu", "-o", f"kv_wait={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "kv" in result.stderr.str()
    assert "wait" in result.stderr.str()
