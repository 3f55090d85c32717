"""The conformance suite of launchers: what holds of a boot of any launcher, as one function for each check.

A check gets a `Boot` of a `Case` and asserts. The pair is on the tier `pnfs (stand-in)` in multi-process mode,
so that each launcher starts LMCache servers, vLLM servers and a balancer, makes a folder, and passes a secret on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import BootError
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving import pair as pairs
from pytest_kvcache.serving.launchers import catalogue
from pytest_kvcache.serving.launchers.base import Handle, Launch, Launcher
from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.serving.pair import ServingPair

#: What no file, output or command line may have.
SECRET = "planted-s3cret"
_ENDS_S = 20.0


@dataclass(frozen=True)
class Case:
    """A launcher to be tried.

    Args:
        name: Name of the launcher, as `--kv-launcher` takes it.
        engine: Engine whose programs it starts.
        profile: Profile in multi-process mode.
        home: Folder of journals and leases.
        folder: Folder for results and for the tier.
        boot_s: Limit of a boot (s).
        kill: Ends a component's process from outside, with SIGKILL; None for a signal to its first process.
    """

    name: str
    engine: BaseEngine
    profile: Profile
    home: Path
    folder: Path
    boot_s: float = 60.0
    kill: Callable[[Handle], None] | None = None

    def tier(self) -> TierPlan:
        """Return the plan of a tier with a folder and a secret."""
        kv = self.folder / "kv"
        adapter = {"type": "fs", "base_path": str(kv)}
        return TierPlan("pnfs (stand-in)", Offload(adapter), folders=(kv,), secret_env={"PLANTED": SECRET})

    def launch(self, run: RunSession) -> Launch:
        """Return a boot of the tier."""
        return Launch(run, self.engine, self.profile, self.tier())


@dataclass(frozen=True)
class Boot:
    """A boot of a case.

    Args:
        case: The case.
        launcher: Its launcher.
        pair: The running pair.
        run: The run that owns it.
        logs: Folder of the logs.
        handles: What runs now.
    """

    case: Case
    launcher: Launcher
    pair: ServingPair
    run: RunSession
    logs: Path
    handles: list[Handle]

    def handle(self, name: str) -> Handle:
        """Return a component's handle."""
        return next(handle for handle in self.handles if handle.component.name == name)


@contextlib.contextmanager
def booted(case: Case) -> Iterator[Boot]:
    """Boot a case, and end it."""
    run = RunSession(case.home, case.folder / "runs", print)
    try:
        launcher = catalogue.make(case.name, case.launch(run))
        logs = run.folder / "logs"
        try:
            launcher.prepare()
            pair = pairs.boot(launcher.plan(), launcher, logs, timeout_s=case.boot_s)
            handles = list(pair.handles)
            try:
                yield Boot(case, launcher, pair, run, logs, handles)
            finally:
                launcher.stop(handles)
        finally:
            launcher.clear()
    finally:
        run.close()


def boots(boot: Boot) -> None:
    """All components are ready, and a question to the balancer is answered."""
    boot.pair.check_alive()
    assert [handle.component.name for handle in boot.pair.handles] == [c.name for c in boot.pair.plan.components]
    for url in boot.pair.plan.server_urls.values():
        assert _status(f"{url}/health") == 200
    asked = {"model": boot.pair.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(
            f"{boot.pair.base_url}/chat/completions", json={**asked, **boot.pair.extra_body, "stream": True}, timeout=60
        )
    assert answer.status_code == 200
    assert "data: [DONE]" in answer.text


def counts(boot: Boot) -> None:
    """Every address of counters that the plan names answers, from this machine."""
    assert set(boot.pair.plan.metrics_urls) == {"vllm-0", "vllm-1", "lmcache-0", "lmcache-1"}
    for url in boot.pair.plan.metrics_urls.values():
        assert _status(url) == 200


def logs(boot: Boot) -> None:
    """Each component has a log of its own in the run's folder on this machine."""
    names = {component.name for component in boot.pair.plan.components}
    assert {path.stem for path in boot.logs.glob("*.log")} >= names


def describes_itself(boot: Boot) -> None:
    """The record of a run's environment has the launcher's name, and only texts."""
    described = boot.launcher.describe()
    assert described["name"] == boot.case.name
    assert all(isinstance(value, str) for item in described.items() for value in item)


def keeps_secrets(boot: Boot) -> None:
    """No command line, log, result or description has a secret that components got, while they run."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if SECRET in line] == []
    assert SECRET not in str(boot.launcher.describe())
    for path in (*boot.run.folder.rglob("*"), *boot.case.home.rglob("*.json")):
        if path.is_file() and not path.is_symlink():
            assert SECRET.encode() not in path.read_bytes(), path


def restarts_one(boot: Boot) -> None:
    """One component is ended and started anew at its address; the others are not touched, and its log goes on."""
    before = boot.handle("vllm-0")
    others = [handle for handle in boot.handles if handle is not before]
    size = before.log.stat().st_size
    again = boot.launcher.restart(before, boot.logs)
    boot.handles[boot.handles.index(before)] = again
    url = f"{boot.pair.plan.server_urls['vllm-0']}/health"
    _until(lambda: _status(url) == 200, boot.case.boot_s)
    assert again.exit_code() is None
    assert [handle.exit_code() for handle in others] == [None] * len(others)
    assert again.log == before.log
    assert again.log.stat().st_size >= size


def tells_a_kill(boot: Boot) -> None:
    """A component that was killed is found out, with the signal, by name."""
    handle = boot.handle("vllm-1")
    (boot.case.kill or _kill)(handle)
    _until(lambda: handle.exit_code() is not None, _ENDS_S)
    assert handle.exit_code() == -signal.SIGKILL
    with pytest.raises(BootError, match=r"vllm-1 ended while serving.*SIGKILL"):
        boot.pair.check_alive()
    assert boot.handle("vllm-0").exit_code() is None


def leaves_nothing(boot: Boot) -> None:
    """Once a boot has ended, no process, listener or folder of it is there; its logs are."""
    urls = [*boot.pair.plan.server_urls.values(), *boot.pair.plan.metrics_urls.values(), boot.pair.base_url]
    assert _processes(boot.run) == []
    assert [url for url in urls if _listens(url)] == []
    assert [folder for folder in (*boot.pair.plan.tier.folders, boot.run.scratch) if folder.exists()] == []
    assert boot.logs.exists()


def starts_cold(case: Case) -> None:
    """A boot after another one finds an empty folder of the tier, whatever the first has left in it."""
    with booted(case) as boot:
        (folder,) = boot.pair.plan.tier.folders
        (folder / "left").write_text("by the first")
    with booted(case):
        assert list(folder.iterdir()) == []


#: What must hold while a pair is up, in this order: the last two change it.
WHILE_UP: Mapping[str, Callable[[Boot], None]] = {
    "boots": boots,
    "metrics": counts,
    "logs": logs,
    "describe": describes_itself,
    "secrets": keeps_secrets,
    "restart one": restarts_one,
    "kill": tells_a_kill,
}


def _kill(handle: Handle) -> None:
    psutil.Process(handle.leader.pid).send_signal(signal.SIGKILL)  # type: ignore[attr-defined]


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _status(url: str) -> int:
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(url, timeout=5).status_code
    except requests.RequestException:
        return 0


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1):
            return True
    except OSError:
        return False


def _processes(run: RunSession) -> list[str]:
    """Return the processes, of whatever container or node of this machine, that a component of the run started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("TMPDIR") == str(run.scratch):
                found.append(" ".join(process.cmdline()))
    return found
