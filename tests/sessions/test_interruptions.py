"""What interrupts a boot or a load is told once for its tier, and leaves rows and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from pytest_kvcache import activation, perf  # noqa: F401 - numpy cannot be imported twice in one process
from pytest_kvcache.load.worker import CLOCK_STARTS
from pytest_kvcache.serving import pair as pairs
from pytest_kvcache.serving.pair import ServingPair
from tests.projects import NOTHING, Project, configure, ours, run_apart, run_folder, traces
from tests.stubs.engine import toml
from tests.stubs.programs import ANSWERED


class Own(BaseException):
    """What a plugin may raise."""


TIMEOUT = pytest.fail.Exception("Timeout (>1.0s)\nfrom a plugin")
#: What comes, and when; pytest goes on to the next test.
GO_ON = [
    (TIMEOUT, "boot"),
    (TIMEOUT, "load"),
    (SystemExit(3), "boot"),
    (Own("mine"), "load"),
    (ZeroDivisionError("ours"), "load"),
]
#: pytest ends the session.
END = [(KeyboardInterrupt(), "boot"), (pytest.exit.Exception("enough"), "load")]


TESTS = """
import pytest
pytestmark = pytest.mark.perf
@pytest.mark.parametrize("tokens", [50, 60])
def test_a(tokens, multi_round_qa):
    multi_round_qa(context_tokens=tokens)
def test_b(multi_round_qa):
    multi_round_qa(context_tokens=50)
def test_c(vllm_pair): pass
def test_d(vllm_pair): pass
"""
SHARED = """
import pytest
pytestmark = pytest.mark.perf
def test_a(vllm_pair): pass
def test_b(vllm_pair): pass
def test_c(vllm_pair, multi_round_qa):
    multi_round_qa(context_tokens=50)
"""


class Watch:
    """Notes what runs when a test begins."""

    def __init__(self, path: Path) -> None:
        self.path, self.running = path, 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Count."""
        self.running += len(ours(self.path))


def logs(path: Path, pattern: str) -> str:
    """Return the text of all logs of that name."""
    return "".join(log.read_text() for log in (path / ".kvcache").rglob(pattern))


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str, path: Path, error: BaseException) -> list[int]:
    """Have `error` come while servers start, or once a load has brought answers; return what counts that."""
    came: list[int] = []

    def now() -> None:
        came.append(1)
        raise error

    def under_load(pair: ServingPair) -> None:
        done = logs(path, "vllm-*.log").count(ANSWERED)
        if CLOCK_STARTS in logs(path, "load.log") and done > 5:
            time.sleep(0.5)  # the client reads them
            now()

    if where == "boot":
        monkeypatch.setattr(pairs, "_is_ready", lambda *_: now())
    else:
        monkeypatch.setattr(ServingPair, "check_alive", under_load)
    return came


def run_here(project: Project, *args: str, watch: Watch | None = None) -> pytest.RunResult:
    """Run pytest in this process."""
    given = ("-p", "no:cacheprovider", "-p", "no:benchmark", "--tier", "gpu", *args)
    return project.runpytest_inprocess(*given, plugins=[watch] if watch else [], no_reraise_ctrlc=True)


def named(value: object) -> str:
    """Return the name of a parameter."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("error", "where"), GO_ON, ids=named)
def test_an_interruption_is_told_once_for_its_tier(
    project: Project, kvcache_home: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    """The test that was interrupted shows it; all others of the tier say so in one line, and nothing boots or runs."""
    configure(project, toml(duration_s=60))
    project.makepyfile(test_mine=TESTS)
    came, watch = interrupt(monkeypatch, where, project.path, error), Watch(project.path)
    result = run_here(project, "test_mine.py", watch=watch)
    assert len(came) == 1
    result.assert_outcomes(failed=3, errors=2)
    said = (
        f"tier gpu: the measurement ended with {type(error).__name__}: {str(error).partition(chr(10))[0]} (in boot-1)"
    )
    lines = [line for line in result.outlines if line.startswith(said)]
    assert len(lines) == 4 + 1  # each other test, and the summary
    assert watch.running == 0
    assert [each.name for each in (run_folder(project) / "gpu").iterdir()] == ["boot-1"]
    assert traces(project.path, kvcache_home) == NOTHING
    if where == "load":
        rows_are_kept(project)


@pytest.mark.parametrize(("error", "where"), END, ids=named)
def test_an_interruption_that_ends_the_session_is_told(
    project: Project, kvcache_home: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    """Ctrl-C and `pytest.exit` are told in the summary, and leave rows and nothing else."""
    configure(project, toml(duration_s=60))
    project.makepyfile(test_mine=TESTS)
    interrupt(monkeypatch, where, project.path, error)
    result = run_here(project, "test_mine.py", "--update-baselines")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*no baseline was written: *", f"tier gpu: the measurement ended with {type(error).__name__}* (in boot-1): *"]
    )
    assert traces(project.path, kvcache_home) == NOTHING
    if where == "load":
        rows_are_kept(project)


@pytest.mark.parametrize("error", [TIMEOUT, SystemExit(3)], ids=named)
def test_a_shared_pair_that_was_interrupted_is_not_booted_again(
    project: Project, kvcache_home: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """What interrupts the boot of a shared pair is the whole tier's too."""
    configure(project, toml())
    project.makepyfile(test_mine=SHARED)
    came, watch = interrupt(monkeypatch, "boot", project.path, error), Watch(project.path)
    result = run_here(project, "test_mine.py", watch=watch)
    assert (len(came), watch.running) == (1, 0)
    result.assert_outcomes(errors=3)
    assert len([line for line in result.outlines if "(in pair-1): no test of this tier boots again" in line]) == 2 + 1
    assert traces(project.path, kvcache_home) == NOTHING


def test_other_tiers_go_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier that was interrupted stops no other one, and what it has measured before stands."""
    configure(project, toml())
    project.makepyfile(
        test_mine="""
        import pytest
        pytestmark = pytest.mark.perf
        @pytest.mark.parametrize("tokens", [50, 60, 50])
        def test_a(tokens, kv_tier, multi_round_qa):
            multi_round_qa(context_tokens=tokens)
        """
    )
    begin = pairs.boot

    def boot(plan: object, launcher: object, logs: Path, **more: object) -> ServingPair:
        if "gpu/boot-2" in str(logs):
            raise SystemExit(3)
        return begin(plan, launcher, logs, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs, "boot", boot)
    result = run_here(project, "--tier", "cpu", "test_mine.py", "-v")
    result.assert_outcomes(passed=5, failed=1)
    assert [each.name for each in sorted((run_folder(project) / "cpu").iterdir())] == ["boot-1", "boot-2"]


def rows_are_kept(project: Project, *, load_told: bool = True) -> None:
    """Look at what a load leaves that was cut short, and at what it told of itself if that could still be noted."""
    folder = run_folder(project) / "gpu" / "boot-1" / "context-50"
    rows = pd.read_parquet(folder / "requests.parquet")
    assert (rows["status"] == "ok").any()
    facts = json.loads((folder / "run.json").read_text())
    assert facts["load"]["interrupted"] if load_told else not facts["load"]
    assert facts["faults"] == ["the run was cut short"]


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_a_timeout_of_pytest_timeout(project: Project, kvcache_home: Path, method: str) -> None:
    """Each method of pytest-timeout leaves nothing that runs; after a signal the next tests say so."""
    configure(project, toml(vllm_args='"--stub-boot", "60"'))
    result = run_apart(project, "--tier", "gpu", f"--timeout-method={method}", "--timeout=2.5")
    assert result.ret == 1
    if method == "signal":
        result.assert_outcomes(failed=3)
        assert result.stdout.str().count("ended with Failed: Timeout (>2.5s)") >= 2
    assert traces(project.path, kvcache_home) == NOTHING


@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_program_that_leaves_by_force(project: Project, kvcache_home: Path, thread: str) -> None:
    """A plugin's `os._exit` has rows saved and servers ended first, and keeps its exit code."""
    configure(project, toml(duration_s=60))
    leave = "os._exit(7)" if thread == "main" else "threading.Thread(target=os._exit, args=(7,)).start()"
    project.makeconftest(
        f"""
        import os, pathlib, threading, time
        from pytest_kvcache.serving.pair import ServingPair
        def leave_under_load(pair):
            logs = pathlib.Path({str(project.path)!r}, ".kvcache").rglob("*.log")
            texts = dict((log.stem, log.read_text()) for log in logs)
            answered = texts["vllm-0"].count({ANSWERED!r}) + texts["vllm-1"].count({ANSWERED!r})
            if {CLOCK_STARTS!r} in texts.get("load", "") and answered > 5:
                time.sleep(0.5)
                {leave}
        ServingPair.check_alive = leave_under_load
        """
    )
    result = run_apart(project, "--tier", "gpu")
    assert result.ret == 7
    assert traces(project.path, kvcache_home) == NOTHING
    rows_are_kept(project, load_told=thread == "other")


@pytest.mark.parametrize(
    ("makes", "slow"),
    [("state.run", "processes.end"), ("None", "MachineLock.release")],
    ids=["while processes are ended", "before there is a run"],
)
def test_a_program_that_leaves_by_force_before_a_boot(
    project: Project, kvcache_home: Path, makes: str, slow: str
) -> None:
    """Where another thread ends the run first, the main thread, which nobody interrupts there, boots nothing more."""
    configure(project, toml(duration_s=60))
    project.makeconftest(
        f"""
        import os, threading, time
        from pytest_kvcache import tier_check
        from pytest_kvcache.runs import processes
        from pytest_kvcache.runs.machine import MachineLock
        ends, slowed, usable = threading.Event(), {slow}, tier_check.usable
        def end_slowly(*args, **named):
            slowed(*args, **named)
            ends.set()
            time.sleep(5)
        def leave(name, state):
            if not ends.is_set():
                {makes}
                threading.Thread(target=os._exit, args=(7,)).start()
                assert ends.wait(30)
            return usable(name, state)
        {slow}, tier_check.usable = end_slowly, leave
        """
    )
    result = run_apart(project, "--tier", "gpu")
    assert result.ret == 7
    assert traces(project.path, kvcache_home) == NOTHING


@pytest.mark.parametrize(("lost", "kept"), [(1, True), (2, False)], ids=["one", "all"])
def test_a_load_process_that_is_killed(
    project: Project, monkeypatch: pytest.MonkeyPatch, lost: int, *, kept: bool
) -> None:
    """The rows of the others are kept, and the run is invalid and names the one that was lost."""
    configure(project, toml(duration_s=2).replace("users = 3", "workers = 2\nusers = 3"))
    killed: list[int] = []

    def kill(_: ServingPair) -> None:
        if killed or logs(project.path, "vllm-*.log").count(ANSWERED) < 5 or not logs(project.path, "load.log"):
            return
        workers = [p for p in ours(project.path) if "pytest_kvcache.load.worker" in p.cmdline()]
        (load,) = (p for p in workers if p.ppid() not in {each.pid for each in workers})
        for child in load.children()[::2][:lost]:  # each is followed by its sender
            child.kill()
            killed.append(child.pid)

    monkeypatch.setattr(ServingPair, "check_alive", kill)
    result = run_here(project, "-k", "ttft")
    result.assert_outcomes(failed=1)
    assert len(killed) == lost
    result.stdout.fnmatch_lines(
        [
            "*stub/gpu/50 on gpu is invalid*",
            "*load process ? of 2 was lost (killed by SIGKILL), and its requests with it*",
        ]
    )
    folder = run_folder(project) / "gpu" / "boot-1" / "context-50"
    assert bool((pd.read_parquet(folder / "requests.parquet")["status"] == "ok").any()) is kept
    assert len(json.loads((folder / "run.json").read_text())["load"]["lost_workers"]) == lost
