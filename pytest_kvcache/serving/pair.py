"""Boot a serving plan, and watch its components while they serve."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from pytest_kvcache.errors import BootError
from pytest_kvcache.runs import signals
from pytest_kvcache.serving.component import Component, Stage
from pytest_kvcache.serving.diagnosis.diagnose import diagnose_file
from pytest_kvcache.serving.diagnosis.endings import KILLED
from pytest_kvcache.serving.launchers.base import Handle, Starter
from pytest_kvcache.serving.launchers.on_nodes import ServerNodes
from pytest_kvcache.serving.plan import ServingPlan

_STAGES: tuple[Stage, ...] = ("storage", "servers", "balancer")
_POLL_S = 0.1


@dataclass(frozen=True)
class ServingPair:
    """A running pair, which the fixture `vllm_pair` is.

    Args:
        plan: Plan that was started.
        handles: Handle of each component, in the order of the start.
        boot_s: Time from the first start to the last readiness (s).
        launched: Where and how its components run (`Launcher.describe`).
        logs: Folder of the components' logs.
        nodes: Other machines on which servers run, where its launcher has them watched.
    """

    plan: ServingPlan
    handles: tuple[Handle, ...]
    boot_s: float
    launched: Mapping[str, str] = field(default_factory=dict)
    logs: Path = Path()
    nodes: ServerNodes | None = None

    @property
    def base_url(self) -> str:
        """The balancer's URL with /v1."""
        return self.plan.base_url

    @property
    def model(self) -> str:
        """The model name for requests."""
        return self.plan.model

    @property
    def extra_body(self) -> dict[str, Any]:
        """Fields that each request must carry beside the API's own, which keep the keys of boots apart in a storage."""
        return dict(self.plan.extra_body)

    @property
    def label(self) -> str:
        """The tier's name for outputs."""
        return self.plan.tier.label

    def check_alive(self) -> None:
        """Return if every component still runs.

        Raises:
            BootError: A component has ended; the error has its exit code, the first cause and its log.
        """
        for handle in self.handles:
            code = handle.exit_code()
            if code is not None:
                raise component_failed(handle, code, "ended while serving")

    def check_alive_now(self) -> None:
        """Do the same, but ask other machines first: what is known of them is up to a second old.

        Raises:
            BootError: A component has ended, or its machine was lost.
        """
        for node in () if self.nodes is None else self.nodes.each:
            node.bring()
        self.check_alive()


def boot(
    plan: ServingPlan,
    launcher: Starter,
    logs: Path,
    *,
    timeout_s: float,
    waiting: Callable[[Sequence[str]], None] = lambda _: None,
) -> ServingPair:
    """Start all components of `plan`, those of a stage side by side, and return when all are ready.

    Args:
        plan: Plan to start.
        launcher: Starts and stops the components.
        logs: Folder of the components' logs.
        timeout_s: Limit for the whole boot (s).
        waiting: Is told again and again which components are not ready yet.

    Raises:
        BootError: A component ended or was not ready in time. Components that were started are stopped first.
    """
    started = time.monotonic()
    handles: list[Handle] = []
    try:
        for stage in _STAGES:
            first = len(handles)
            for component in _of_stage(plan, stage, handles):
                with signals.deferred():  # an interruption waits until the handle is in the list
                    handles.append(launcher.start(component, logs))
            _wait(handles[first:], handles, deadline=started + timeout_s, told=waiting)
    except BaseException:
        launcher.stop(handles)
        raise
    return ServingPair(plan=plan, handles=tuple(handles), boot_s=time.monotonic() - started, logs=logs)


def _of_stage(plan: ServingPlan, stage: Stage, handles: list[Handle]) -> list[Component]:
    names = {handle.component.name for handle in handles}
    return [c for c in plan.components if c.stage == stage and c.name not in names]


def _wait(
    now: list[Handle], all_handles: list[Handle], *, deadline: float, told: Callable[[Sequence[str]], None]
) -> None:
    waiting = list(now)
    # One session for all looks: each that is closed has finalizers run, where Python swallows what a signal's handler
    # raises. `signals` has Ctrl-C come again then; pytest-timeout's alarm is not ours, and would be lost. The URLs are
    # always loopback, so no proxy of the environment is used.
    with requests.Session() as session:
        session.trust_env = False
        while waiting:
            for handle in all_handles:
                code = handle.exit_code()
                if code is not None:
                    raise component_failed(handle, code, "ended while starting")
            waiting = [handle for handle in waiting if not _is_ready(handle, session)]
            if waiting and time.monotonic() > deadline:
                handle = waiting[0]
                raise component_failed(handle, None, "was not ready in time (boot_timeout_s)")
            if waiting:
                told([handle.component.name for handle in waiting])
                time.sleep(_POLL_S)


def _is_ready(handle: Handle, session: requests.Session) -> bool:
    component = handle.component
    if component.ready_line:
        lines = handle.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return any(line.startswith(component.ready_line) for line in lines)
    if component.ready_url is None:
        return True
    try:
        status = session.get(component.ready_url, timeout=1.0).status_code
    except requests.RequestException:
        return False
    return component.ready_any_status or status == 200


def component_failed(handle: Handle, code: int | None, how: str) -> BootError:
    """Return the error for a component that failed, with its exit code, first cause, log and a hint."""
    if code == -signal.SIGKILL:
        # A killed component had no time to write a word: the end of its log is not the cause.
        return BootError(
            f"{handle.component.name} {how}: it was killed (SIGKILL)",
            where=str(handle.log),
            todo=KILLED,
        )
    _let_log_settle(handle.log)
    diagnosis = diagnose_file(handle.log)
    ending = "still running" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"
    cause = f": {diagnosis.cause}" if diagnosis.cause else ""
    return BootError(
        f"{handle.component.name} {how} ({ending}){cause}",
        where=str(handle.log),
        todo=diagnosis.hint or "read the log above",
    )


def _let_log_settle(log: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait (1 s at most) until a dying component's other processes have written their last lines."""
    size = -1
    for _ in range(4):
        now = log.stat().st_size if log.exists() else 0
        if now == size:
            return
        size = now
        sleep(0.25)
