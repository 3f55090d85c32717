"""The lab's launcher passes the conformance suite on a stand-in for the guest: this machine runs its commands.

That the guest itself runs them, on real mounts, is what `make pnfs-lab-test` shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.pnfs import launcher, network, of_guest, perf, tier
from lab.pnfs.guest import Done
from lab.pnfs.lab import Lab
from lab.pnfs.launcher import GuestHandle
from lab.pnfs.settings import LabSettings
from lab.pnfs.tier import PnfsLabTier
from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.errors import RunError
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.places import LOOPBACK
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers import catalogue
from tests.conformance.launchers import WHILE_UP, Boot, Case, booted, leaves_nothing
from tests.stubs.engine import toml

pytestmark = pytest.mark.long


class LocalProcess:
    """A command of the stand-in: a process of this machine in a session of its own.

    Args:
        popen: The process.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen, self.pid = popen, popen.pid

    def poll(self) -> int | None:
        """Return the exit code as the guest's shell tells it."""
        code = self._popen.poll()
        return code if code is None or code >= 0 else 128 - code


class LocalLab:
    """Stands in for a lab that is up: what would run in the guest runs here, and its mounts are folders.

    Args:
        folder: Where the mounts are.
    """

    id, namespace, guest_address, is_alive = "stand-in", "none", LOOPBACK, True

    def __init__(self, folder: Path) -> None:
        self.folder, self.guest = folder, self
        export = folder / "export"
        export.mkdir()
        self.mounts = tuple(str(folder / name) for name in ("kv", "kv2"))
        for mount in self.mounts:
            Path(mount).symlink_to(export)
        self.settings = LabSettings(mounts=self.mounts)
        self.shown: list[tuple[Path, bool]] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, argv: Sequence[str], *, limit_s: float = 60.0, check: bool = True) -> Done:
        """Run a command."""
        done = subprocess.run(argv, capture_output=True, encoding="utf-8", check=False, timeout=limit_s)
        if check and done.returncode:
            raise RunError(f"ended with {done.returncode}: {done.stderr}", where="stand-in for the guest")
        return Done(done.returncode, done.stdout + done.stderr)

    def shell(self, script: str) -> str:
        """Run a script."""
        return self.run(["bash", "-ec", script]).output

    def exec(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, log: Path) -> LocalProcess:
        """Start a command."""
        with log.open("ab") as out:
            popen = subprocess.Popen(
                argv, env={**os.environ, **env}, cwd=cwd, stdout=out, stderr=out, start_new_session=True
            )
        self.started.append(popen)
        return LocalProcess(popen)

    def show(self, folder: Path, *, writable: bool = False) -> None:
        """Note a folder, and whether it can be written."""
        self.shown.append((folder, writable))


@dataclass(frozen=True)
class LabCase(Case):
    """The lab's launcher with its own tier, which has no secrets."""

    def tier(self) -> TierPlan:
        """Return the plan of the lab's tier."""
        ctx = TierContext(self.profile, "conform", self.folder, self.folder, lambda _: None, lambda: 0, {})
        return PnfsLabTier(name="pnfs-lab").plan(ctx)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalLab]:
    """A stand-in for a lab."""
    lab = LocalLab(tmp_path)
    told = [{"folder": each, "mount": "stand-in", "unmet": "", "todo": ""} for each in lab.mounts]
    monkeypatch.setattr(Lab, "attach", lambda _=None: lab)
    monkeypatch.setattr(network, "is_inside", lambda _: True)
    monkeypatch.setattr(of_guest, "ask", lambda *_, **__: told)
    monkeypatch.setattr(tier, "GUEST_ADDRESS", LOOPBACK)
    monkeypatch.setattr(launcher, "guest_leader", lambda _: Leader(1, 1, "console.log"))
    monkeypatch.setattr(launcher, "_LEFT", str(tmp_path / "sessions"))
    tier._asked.cache_clear()
    yield lab
    for each in lab.started:
        each.wait(10)  # ended by the launcher, or the test fails
    tier._asked.cache_clear()


@pytest.fixture
def case(local: LocalLab, stub_engine: Path, tmp_path: Path, kvcache_home: Path) -> LabCase:
    """The launcher with stub programs."""
    config = tmp_path / "kvcache.toml"
    config.write_text(toml())
    return LabCase(
        "pnfs-lab", engine_named(str(stub_engine)), catalogue.load(config).profile("stub"), kvcache_home, tmp_path
    )


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conformance suite finds the launcher by its name, as a project's tier finds it by its class."""
    made = launcher.LabLauncher
    monkeypatch.setattr("tests.conformance.launchers.catalogue.make", lambda _, launch: made(launch))


@pytest.mark.parametrize("check", [each for name, each in WHILE_UP.items() if name != "secrets"])
def test_conforms(check: Callable[[Boot], None], case: LabCase, local: LocalLab) -> None:
    """Each check holds of a pair that is up, and afterwards nothing of it is left, in the guest neither."""
    with booted(case) as boot:
        check(boot)
        assert boot.run.leaders[-1].log == "console.log"
    leaves_nothing(boot)
    assert list((local.folder / "export").iterdir()) == []
    assert not (local.folder / "sessions").exists()


def test_a_server_of_the_guest_that_is_killed_and_one_that_is_restarted(case: LabCase, local: LocalLab) -> None:
    """LMCache in the guest is told to have been killed, and is started anew at its address, in the same log."""
    with booted(case) as boot:
        handle = boot.handle("lmcache-1")
        assert isinstance(handle, GuestHandle)
        os.kill(handle.process.pid, signal.SIGKILL)
        while handle.exit_code() is None:
            pass
        assert handle.exit_code() == -signal.SIGKILL
        again = boot.launcher.restart(handle, boot.logs)
        boot.handles[boot.handles.index(handle)] = again
        assert again.exit_code() is None
        assert again.log == handle.log
    leaves_nothing(boot)


def test_storage_is_fresh_and_never_anothers(case: LabCase, local: LocalLab) -> None:
    """The folder of a boot is new on the export, seen by both mounts, and a boot takes no folder that is there."""
    with booted(case):
        (folder,) = (local.folder / "export").iterdir()
        assert [Path(mount, folder.name).is_dir() for mount in local.mounts] == [True, True]
    folder.mkdir()
    with pytest.raises(RunError, match="File exists"), booted(case):
        pytest.fail("the folder was there before the boot")


def test_what_a_killed_session_left_is_ended(case: LabCase, local: LocalLab) -> None:
    """Servers that a killed pytest left in the guest are ended before the next pair starts there."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as left:
        (local.folder / "sessions").write_text(f"{left.pid}\n")
        with booted(case):
            assert left.wait(10) == -signal.SIGKILL


def test_the_guest_sees_what_it_needs(case: LabCase, local: LocalLab) -> None:
    """Engine and results are shown to the guest, and nothing else of the host."""
    with booted(case) as boot:
        engine = Path(case.engine.python).parents[1]
        assert local.shown == [(engine, False), (boot.run.folder, True)]


def test_the_labs_profiles_can_be_served() -> None:
    """Both of the lab's profiles have LMCache beside vLLM, on processors, with time for a guest of one processor."""
    known = catalogue.load(perf.CONFIG)
    for name in ("pnfs-lab", "pnfs-lab-article"):
        profile = known.profile(name)
        assert (profile.lmcache_mode, profile.gpus_per_server) == ("mp", 0)
        assert profile.boot_timeout_s >= 600
