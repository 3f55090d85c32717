"""A session of a user's project in which something breaks, and what every fault must come to."""

from __future__ import annotations

import os
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

from tests.projects import NOTHING, Project, Session, configure, ours, run_folder, traces

#: LMCache beside vLLM, where its programs can be broken; and inside it.
BESIDE, INSIDE = "cpu-tiny-mp", "cpu-tiny"
#: One length; requests that hang fail within the test's patience.
PROFILE = """
[profiles.faults]
extends = "{mode}"
[profiles.faults.workload]
context_tokens = [3500]
duration_s = {duration_s}
request_timeout_s = 25
token_timeout_s = 25
yardsticks = 0
# A fault is to be told whatever else the machine does.
send_late_budget_s = 2
"""
RULES = """
[profiles.faults.rules]
canary = false
"""
CONTEXT = 3500
GATES = ("ttft", "speed", "decode", "tokens")
#: From the start of the clock to the fault: some rounds are over, and some are left (s).
INTO_THE_RUN_S = 4.0
#: Of a boot, a run whose last requests time out, and the end (s): beside other work a boot alone took 249 s.
PATIENCE_S = 900


@dataclass(frozen=True)
class Ended:
    """What a session came to.

    Args:
        code: pytest's exit code.
        output: All that it printed.
        verdicts: By gate (`ttft`); nothing where the session failed before there could be one.
        folder: Of the run's results, None where nothing was measured or logged.
        left: What it must not leave, and left.
    """

    code: int
    output: str
    verdicts: dict[str, str]
    folder: Path | None
    left: dict[str, object]

    def logs(self, tier: str) -> str:
        """Return the names of the logs that were kept of the first boot, and all that is in them."""
        assert self.folder is not None
        files = sorted((self.folder / tier / "boot-1").rglob("*.log"))
        return "\n".join(f"{path.name}\n{path.read_text(errors='replace')}" for path in files)

    def rows(self, tier: str) -> pd.DataFrame:
        """Return the rows that were kept of the first boot."""
        assert self.folder is not None
        return pd.read_parquet(self.folder / tier / "boot-1" / f"context-{CONTEXT}" / "requests.parquet")


def prepare(
    project: Project, engine: Path, tiers: str = "", *, rules: str = RULES, mode: str = BESIDE, duration_s: int = 16
) -> None:
    """Have a project run the short profile on `engine`, with `tiers` added to its kvcache.toml."""
    project.makepyprojecttoml(f'[tool.pytest.ini_options]\nkv_engine = "{engine}"\nkv_profile = "faults"\n')
    configure(project, PROFILE.format(mode=mode, duration_s=duration_s) + rules + tiers)


def run(
    project: Project,
    home: Path,
    *args: str,
    breaks: Callable[[Session], None] | None = None,
    boots: int = 1,
) -> Ended:
    """Run a session to its end, and have it broken while requests are under way."""
    junit = project.path / "junit.xml"
    session = Session(project, f"--junitxml={junit}", *args)
    try:
        if breaks is not None:
            wait_for_requests(session)
            breaks(session)
        code = session.process.wait(boots * PATIENCE_S)
    finally:
        if session.process.poll() is None:
            session.process.send_signal(signal.SIGINT)
            session.process.wait(30)
    cases = ET.parse(junit).getroot().iter("testcase")  # noqa: S314 - written by our own pytest
    runs = project.path / ".kvcache" / "runs"
    return Ended(
        code=code,
        output=session.out.read_text(),
        verdicts={
            case.get("name", "").rpartition("-")[2].rstrip("]"): prop.get("value", "")
            for case in cases
            for prop in case.iter("property")
            if prop.get("name") == "kv_verdict"
        },
        folder=run_folder(project) if runs.is_dir() and any(runs.iterdir()) else None,
        left=traces(project.path, home),
    )


def wait_for_requests(session: Session) -> None:
    """Wait until the clock of the run has started and some rounds are over."""
    before: set[int] = set()
    # The load process forks those that send when counters were read and the clock is about to start. A fork that is
    # gone soon was that of a program that it asked something.
    while len(before & _load_processes(session)) < 2:
        session.wait_for(lambda: len(_load_processes(session)) > 1 or session.process.poll() is not None, PATIENCE_S)
        assert session.process.poll() is None, session.out.read_text()
        before = _load_processes(session)
        time.sleep(INTO_THE_RUN_S)


def _load_processes(session: Session) -> set[int]:
    return {p.pid for p in component(session, "load")}


def component(session: Session, name: str) -> list[psutil.Process]:
    """Return the processes of a component (`vllm-0`), its first one in front."""
    own = [p for p in ours(session.path) if _output(p).endswith(f"/{name}.log")]
    return sorted(own, key=lambda p: os.getsid(p.pid) != p.pid)


def _output(process: psutil.Process) -> str:
    """Return the file that a process writes to, "" where it has just ended."""
    try:
        return os.readlink(f"/proc/{process.pid}/fd/1")  # noqa: PTH115 - the target may not exist
    except OSError:
        return ""


def assert_refused(ended: Ended, *says: str, keeps_journal: bool = False) -> None:
    """Hold what every fault must come to: nothing passes, these words, no traceback, nothing left.

    Args:
        ended: The session.
        says: Words of its output.
        keeps_journal: Whether its journal stays, for the next run to remove what could not be removed.
    """
    assert ended.code == 1, ended.output
    assert " passed" not in ended.output.splitlines()[-1], ended.output
    for words in says:
        assert words in ended.output, f"{words!r} is not in:\n{ended.output}"
    assert "Traceback" not in ended.output, ended.output
    assert {**ended.left, "journal": []} == NOTHING
    assert bool(ended.left["journal"]) is keeps_journal


def assert_invalid(ended: Ended, *says: str, keeps_journal: bool = False) -> None:
    """Hold that no gate has a verdict, with these words."""
    assert_refused(ended, *says, keeps_journal=keeps_journal)
    assert ended.verdicts == dict.fromkeys(GATES, "invalid")


def assert_no_secret(ended: Ended, secrets: list[str]) -> None:
    """Hold that none of these words is in what was printed or kept."""
    assert secrets
    assert ended.folder is not None
    for secret in secrets:
        assert len(secret) > 8
        assert secret not in ended.output
        held = [str(p) for p in ended.folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
        assert held == []
