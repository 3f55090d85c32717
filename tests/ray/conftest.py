"""A cluster of three machines with Ray, and a user's project on the one from which pytest runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.ray.machines import Machine, Machines, machines
from tests.stubs.engine import make_engine, toml

EXAMPLE = Path(__file__).parents[1] / "perf" / "test_multi_round_qa.py"
#: A session that has not ended after this long hangs (s); real servers boot for minutes on a busy machine.
END_S = 1800.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of these tests, with the reason, where they cannot run."""
    reason = ""
    if os.getuid() != 0:
        reason = "network namespaces are root's"
    elif find_spec("ray") is None:
        reason = "Ray is not installed: pip install '.[ray]'"
    elif shutil.which("ip") is None or shutil.which("ss") is None:
        reason = "iproute2 is not installed"
    for item in items:
        if reason and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    """Three nodes of Ray; two of them have the mount `pnfs`, and pytest runs on the third."""
    with machines() as made:
        made.start_ray(made.head)
        made.wait(1)
        for machine in made.all[:-1]:
            made.start_ray(machine, {"pnfs": 1})
        made.wait(3)
        yield made


@dataclass
class Session:
    """A session of pytest on the head of the cluster.

    Args:
        project: Where it runs.
        process: The first of its processes.
    """

    project: Path
    process: subprocess.Popen[bytes]

    @property
    def out(self) -> str:
        """All that it has printed."""
        return (self.project / "session.out").read_text()

    def wait_for(self, what: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until something holds while the session runs."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.out
            assert self.process.poll() is None, self.out
            time.sleep(0.1)

    def logs(self, pattern: str) -> str:
        """Return the text of all logs of that name in the run's folder."""
        return "".join(log.read_text() for log in sorted((self.project / ".kvcache").rglob(pattern)))

    def wait_for_load(self) -> None:
        """Wait until the clock of a load has started."""
        self.wait_for(lambda: "the clock starts" in self.logs("load.log") or self.logs("load.log").count("\n") > 1)

    def ended(self) -> int:
        """Wait for its end."""
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.out) from None


@dataclass
class Project:
    """A user's project on the head of the cluster.

    Args:
        path: Its folder.
        cluster: The machines.
        engine: The engine environment that all machines have.
        sessions: Those that were started.
    """

    path: Path
    cluster: Machines
    engine: Path
    sessions: list[Session] = field(default_factory=list)

    @property
    def head(self) -> Machine:
        """Where pytest runs."""
        return self.cluster.head

    def configure(self, *, ray: str = "resources = {pnfs = 1}\n", more: str = "", **settings: Any) -> None:
        """Write kvcache.toml with the profile `stub` on the cluster."""
        table = f'\n[profiles.stub.ray]\naddress = "{self.cluster.address}"\ncpus_per_server = 0.5\nwait_s = 20\n{ray}'
        (self.path / "kvcache.toml").write_text(toml(more=table + more, **settings))

    def start(self, *args: str, **environ: str) -> Session:
        """Start a session in the background."""
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-m", "perf", *args]
        with (self.path / "session.out").open("wb") as out:
            process = subprocess.Popen(
                self.head.argv(*argv),
                cwd=self.path,
                env=self.head.environment(**environ),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.sessions.append(Session(self.path, process))
        return self.sessions[-1]

    def run(self, *args: str, **environ: str) -> Session:
        """Run a session to its end."""
        session = self.start(*args, **environ)
        session.ended()
        return session

    def result(self, name: str) -> list[Path]:
        """Return the files of that name in all runs."""
        return sorted((self.path / ".kvcache" / "runs").rglob(name))


@pytest.fixture
def project(cluster: Machines, tmp_path: Path) -> Iterator[Project]:
    """A project whose engine is a stub."""
    engine = make_engine(tmp_path / "engine")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "test_multi_round_qa.py").write_text(EXAMPLE.read_text())
    (folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--strict-markers", "--strict-config"]\n'
        f'kv_engine = "{engine}"\nkv_profile = "stub"\nkv_launcher = "ray"\n'
    )
    made = Project(folder, cluster, engine)
    made.configure()
    yield made
    for session in made.sessions:  # a failed test leaves none of them
        session.process.kill()
        session.process.wait()
