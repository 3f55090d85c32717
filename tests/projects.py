"""A user's project in a test: its configuration, sessions in it, and what a session must not leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from pytest_kvcache.load.worker import CLOCK_STARTS
from tests.stubs.programs import ANSWERED

#: A session that has not ended after this long hangs: its servers get 5 s to end, and the machine may be busy.
END_S = 60

Project = pytest.Pytester


def configure(project: Project, text: str) -> None:
    """Write the project's kvcache.toml."""
    (project.path / "kvcache.toml").write_text(text, encoding="utf-8")


def commit(project: Project) -> None:
    """Make the project a git repository with all of it committed."""
    for command in ("init -q", "add -A", "-c user.name=x -c user.email=x commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=project.path, check=True)


def git(folder: Path, *args: str) -> None:
    """Run git in a folder, as somebody."""
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x", *args], check=True)


def run(project: Project, *args: str) -> pytest.RunResult:
    """Run pytest in this process, which has imported what a session needs: that would be most of a quick session.

    What a project's conftest changes in modules of the plugin stays changed, unless it changes it by `PATCH`.
    """
    project.syspathinsert()  # as `python -m pytest` does
    return project.runpytest_inprocess("-p", "no:cacheprovider", *told(args))


def run_apart(project: Project, *args: str) -> pytest.RunResult:
    """Run pytest in a process of its own, where that is what is tested."""
    return project.runpytest_subprocess("-p", "no:cacheprovider", *told(args))


def told(args: Sequence[str]) -> list[str]:
    """Return arguments of pytest with which a session prints all of its tables, unless they say how much it prints."""
    said = any(word.startswith(("-q", "-v", "--verbosity")) or word == "no:terminal" for word in args)
    return [*args] if said else ["-v", *args]


#: For a project's conftest: `patch.setattr` and the like last as long as the session, whatever process it runs in.
PATCH = """
import pytest
patch = pytest.MonkeyPatch()

def pytest_unconfigure():
    patch.undo()
"""


def run_folder(project: Project) -> Path:
    """Return the folder of the latest run."""
    return max((project.path / ".kvcache" / "runs").iterdir())


class Session:
    """A pytest session in the background.

    Args:
        project: Where it runs.
        args: For pytest.
        ignoring: Signals that it inherits as ignored, as of `nohup`.
    """

    #: Those that are not known to have ended: a failed test leaves none of them (the fixture `project` ends them).
    started: ClassVar[list[Session]] = []

    def __init__(self, project: Project, *args: str, ignoring: Sequence[int] = ()) -> None:
        def dispose() -> None:
            # A job in the background of a script inherits SIGINT as ignored; a person's terminal does not.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for number in ignoring:
                signal.signal(number, signal.SIG_IGN)

        self.path = project.path
        self.out = project.path / "session.out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
                cwd=project.path,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=dispose,  # noqa: PLW1509
            )
        self.started.append(self)

    def wait_for(self, what: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until `what` holds."""
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.05)

    def wait_for_boot(self) -> None:
        """Wait until servers are starting."""
        self.wait_for(lambda: len(ours(self.path)) >= 4)

    def logs(self, pattern: str) -> list[str]:
        """Return the lines of all logs of that name."""
        found = (self.path / ".kvcache").rglob(pattern)
        return [line for log in found for line in log.read_text().splitlines()]

    def wait_for_load(self) -> None:
        """Wait until measured requests were answered."""

        def answers() -> int:
            return self.logs("vllm-*.log").count(ANSWERED)

        self.wait_for(lambda: any(line.startswith(CLOCK_STARTS) for line in self.logs("load.log")))
        before = answers()
        # The client has read the first of them by the time that the third is sent.
        self.wait_for(lambda: answers() >= before + 3)

    def end(self, number: int) -> int:
        """Send a signal and return the exit code, which must come in time."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end and return the exit code; the failure of one that hangs has its stacks."""
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # pytest enables the fault handler, which writes all stacks
            self.process.wait(END_S)
            raise AssertionError(self.out.read_text()) from None

    @classmethod
    def end_all(cls) -> None:
        """End what a failed test has left; what ended already does no harm."""
        while cls.started:
            process = cls.started.pop().process
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            process.wait(END_S)


def ours(project: Path) -> list[psutil.Process]:
    """Return the living processes whose output goes into the project's runs."""
    found = []
    for process in psutil.process_iter():
        try:
            target = os.readlink(f"/proc/{process.pid}/fd/1")  # noqa: PTH115 - the target may not exist
        except OSError:
            continue
        if target.startswith(f"{project}/.kvcache") and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def traces(project: Path, home: Path) -> dict[str, object]:
    """Return everything that a run must not leave."""
    ids = [p.name for p in (project / ".kvcache" / "runs").glob("*")] + [p.stem for p in home.glob("journal/*.json")]
    pids = {p.pid for p in ours(project)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    return {
        "processes": [p.cmdline() for p in ours(project)],
        "ports": [c.laddr for c in listening],
        "scratch": [str(p) for i in ids for p in Path(tempfile.gettempdir()).glob(f"kvc-{i}*")],
        "storage": [str(p) for p in home.glob("storage/*")],
        "journal": [str(p) for p in home.glob("journal/*")],
    }


NOTHING: dict[str, object] = {"processes": [], "ports": [], "scratch": [], "storage": [], "journal": []}
