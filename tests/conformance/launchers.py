"""The conformance suite of launchers: what holds of a boot of any launcher, as one function for each check.

A check gets a `Boot` of a `Case` and asserts. The pair is on the tier `pnfs (stand-in)` in multi-process mode,
so that each launcher starts LMCache servers, vLLM servers and a balancer, makes a folder, and passes a secret on.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.comparability import comparability
from pytest_kvcache.campaign.load_process import load_plan
from pytest_kvcache.campaign.runner import _facts
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.attached import AttachedEngine
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.models import model_folder
from pytest_kvcache.errors import BootError
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving import pair as pairs
from pytest_kvcache.serving.launchers import catalogue
from pytest_kvcache.serving.launchers.base import Handle, Launch, Launcher
from pytest_kvcache.serving.launchers.docker import ContainerHandle
from pytest_kvcache.serving.launchers.process import ProcessHandle
from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.tiers import catalogue as tiers
from pytest_kvcache.verdict.comparability import differences
from tests.conformance.asking import ask, status
from tests.conformance.traces import Traces, containers_of, node_leader, traces_of

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
    """

    name: str
    engine: BaseEngine
    profile: Profile
    home: Path
    folder: Path
    boot_s: float = 60.0

    def tier(self) -> TierPlan:
        """Return the plan of a tier with a folder and a secret."""
        kv = self.folder / "kv"
        adapter = {"type": "fs", "base_path": str(kv)}
        return TierPlan("pnfs (stand-in)", Offload(adapter), folders=(kv,), secret_env={"PLANTED": SECRET})

    def launch(self, run: RunSession) -> Launch:
        """Return a boot of the tier."""
        stands = isinstance(self.engine, AttachedEngine)
        model = None if stands else model_folder(self.profile, self.engine, self.home)
        return Launch(run, self.engine, self.profile, self.tier(), model)


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
        traces: What the boot must not leave.
    """

    case: Case
    launcher: Launcher
    pair: ServingPair
    run: RunSession
    logs: Path
    handles: list[Handle]
    traces: Traces

    def handle(self, name: str) -> Handle:
        """Return a component's handle."""
        return next(handle for handle in self.handles if handle.component.name == name)

    def check_alive(self) -> None:
        """Return if every component still runs, one that was started anew by its new handle; else raise BootError."""
        replace(self.pair, handles=tuple(self.handles)).check_alive()


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
                run.note_shared_memory()
                yield Boot(case, launcher, pair, run, logs, handles, traces_of(run, pair))
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
        assert status(f"{url}/health") == 200
    asked = ask(boot.pair, "hello")
    assert asked.status_code == 200
    assert "data: [DONE]" in asked.text


def counts(boot: Boot) -> None:
    """Every address of counters that the plan names answers, from this machine."""
    assert set(boot.pair.plan.metrics_urls) == {"vllm-0", "vllm-1", "lmcache-0", "lmcache-1"}
    for url in boot.pair.plan.metrics_urls.values():
        assert status(url) == 200


def logs(boot: Boot) -> None:
    """Each component has a log of its own in the run's folder on this machine."""
    names = {component.name for component in boot.pair.plan.components}
    assert {path.stem for path in boot.logs.glob("*.log")} >= names


def describes_itself(boot: Boot) -> None:
    """The record of a run's environment has the launcher's name, and only texts."""
    described = boot.launcher.describe()
    assert described["name"] == boot.case.name
    assert all(isinstance(value, str) for item in described.items() for value in item)


def labels(boot: Boot) -> None:
    """The tier's label is the one that was planned, in the pair and in the record of a load; containers have theirs."""
    label = boot.case.tier().label
    sent = load_plan(
        boot.pair,
        boot.case.profile.workload,
        context_tokens=boot.case.profile.workload.context_tokens[0],
        first_user=0,
        folder=boot.run.folder,
        salt="",
        nodes=(),
    )
    assert {boot.pair.plan.tier.label, boot.pair.label, _facts(boot.pair, sent)["label"]} == {label}
    in_containers = [handle.id for handle in boot.handles if isinstance(handle, ContainerHandle)]
    assert sorted(containers_of(boot.run.id, boot.run.journal.record.docker)) == sorted(in_containers)
    assert bool(in_containers) == (boot.case.name == "docker")


def comparability_keys(boot: Boot) -> None:
    """The launcher's name is a key, and a baseline of any other launcher is incomparable, with both names."""
    profile = boot.case.profile.model_copy(update={"launcher": boot.case.name})
    arm = Arm("", boot.case.engine, profile, tiers.load(None).select(["gpu"])[0])

    def keys(launcher: str) -> dict[str, str]:
        return comparability(
            profile,
            context_tokens=profile.workload.context_tokens[0],
            model_id=arm.model_id,
            hardware={},
            storage=boot.pair.plan.tier.facts,
            launcher=launcher,
            deployed=arm.standing is not None,
        )

    own = keys(arm.launched_by)
    assert own["serving.launcher"] == boot.case.name
    for other in catalogue.launchers().keys() - {boot.case.name}:
        assert differences(keys(other), own) == [f"serving.launcher: {other} -> {boot.case.name}"]


def keeps_secrets(boot: Boot) -> None:
    """No command line, log, result or description has a secret that components got, while they run."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if SECRET in line] == []
    assert SECRET not in str(boot.launcher.describe())
    for path in (*boot.run.folder.rglob("*"), *boot.case.home.rglob("*.json")):
        # Journals of other runs come and go beside this one.
        with contextlib.suppress(FileNotFoundError):
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
    _until(lambda: status(url) == 200, boot.case.boot_s)
    assert again.exit_code() is None
    assert [handle.exit_code() for handle in others] == [None] * len(others)
    assert again.log == before.log
    assert again.log.stat().st_size >= size


def tells_a_kill(boot: Boot) -> str | None:
    """A component that was killed is found out, with the signal, by name."""
    handle = boot.handle("vllm-1")
    if not end_by_force(boot, handle):
        return "not tried: vllm-1 is on another machine"
    assert handle.exit_code() == -signal.SIGKILL
    with pytest.raises(BootError, match=r"vllm-1 ended while serving.*SIGKILL"):
        boot.check_alive()
    assert boot.handle("vllm-0").exit_code() is None
    return None


def end_by_force(boot: Boot, handle: Handle) -> bool:
    """Kill a component's first process and wait until that is known; return False where it is on another machine."""
    if (pid := first_process(boot, handle)) is None:
        return False
    psutil.Process(pid).kill()
    _until(lambda: handle.exit_code() is not None, _ENDS_S)
    return True


def first_process(boot: Boot, handle: Handle) -> int | None:
    """Return the first process of a component, None where it is on another machine."""
    if isinstance(handle, (ProcessHandle, ContainerHandle)):
        return handle.leader.pid
    return node_leader(boot.case.home, Path(handle.component.env["TMPDIR"]), handle.component.name)


def leaves_nothing(boot: Boot) -> None:
    """Once a boot has ended, no process, listener, folder, container or journal of it is there; its logs are."""
    assert boot.traces.left() == []
    assert boot.logs.exists()


def starts_cold(case: Case) -> None:
    """A boot after another one finds an empty folder of the tier, whatever the first has left in it."""
    with booted(case) as boot:
        (folder,) = boot.pair.plan.tier.folders
        (folder / "left").write_text("by the first")
    with booted(case):
        assert list(folder.iterdir()) == []


#: Raises where something does not hold; returns None where it does, else in words why it is not the launcher's to hold.
Check = Callable[[Boot], str | None]
#: What must hold while a pair is up, in this order: the last two change it.
WHILE_UP: Mapping[str, Check] = {
    "boots": boots,
    "metrics": counts,
    "logs": logs,
    "describe": describes_itself,
    "labels": labels,
    "comparability keys": comparability_keys,
    "secrets": keeps_secrets,
    "restart one": restarts_one,
    "kill": tells_a_kill,
}


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
