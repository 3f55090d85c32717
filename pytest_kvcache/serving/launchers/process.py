"""Start components as processes of this machine, each the leader of its own session."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.config import environment
from pytest_kvcache.runs.processes import Leader, leader_of
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import (
    Handle,
    Launch,
    make_folders,
    no_proxy,
    prepared_log,
    remove_folders,
    remove_tier_folders,
)
from pytest_kvcache.serving.places import Place, Placement, all_at
from pytest_kvcache.serving.plan import ServingPlan, build_plan


@dataclass(frozen=True)
class ProcessHandle:
    """A running process.

    Args:
        component: Component that was started.
        log: File with its output.
        leader: Identifies the process and all that it starts.
        popen: Gives the exit code.
    """

    component: Component
    log: Path
    leader: Leader
    popen: subprocess.Popen[bytes]

    def exit_code(self) -> int | None:
        """Return None while the process runs; a negative number is the signal that ended it."""
        return self.popen.poll()


class ProcessStarter:
    """Starts processes that belong to a run.

    Args:
        session: Records each process before anything can go wrong.
    """

    def __init__(self, session: RunSession) -> None:
        self._session = session

    def start(self, component: Component, logs: Path) -> Handle:
        """Start `component`; its output, and that of all processes it starts, goes to `logs`/NAME.log."""
        log = prepared_log(component, logs)
        with self._session.making(), log.open("ab") as out:
            popen = subprocess.Popen(
                component.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._session.scratch,
                env={
                    **environment.inherited(os.environ),
                    **no_proxy(),
                    **component.env,
                    **component.secret_env,
                },
                start_new_session=True,
            )
            leader = leader_of(popen.pid, log)
            self._session.own_process(leader)
        return ProcessHandle(component=component, log=log, leader=leader, popen=popen)

    def signal(self, handle: Handle, number: int) -> None:
        """Send a signal to a component's first process; do nothing where the process has ended."""
        if isinstance(handle, ProcessHandle):
            handle.popen.send_signal(number)

    def stop(self, handles: list[Handle]) -> None:
        """End the components of `handles` and all processes that they started, side by side."""
        ours = [handle for handle in handles if isinstance(handle, ProcessHandle)]
        self._session.end_processes([handle.leader for handle in ours])
        for handle in ours:
            with contextlib.suppress(subprocess.TimeoutExpired):
                handle.popen.wait(timeout=1.0)  # collects the exit code of a process that has ended
            remove_folders(handle.component)


class ProcessLauncher(ProcessStarter):
    """Boots a pair as processes of this machine.

    Args:
        launch: The boot.
    """

    name = "process"

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch.run)
        self._launch = launch

    def plan(self) -> ServingPlan:
        """Return the plan of a pair that listens on loopback."""
        return build_plan(self._launch.profile, self._launch.tier, placed_here(self._launch))

    def prepare(self) -> None:
        """Make the tier's folders."""
        make_folders(self._launch)

    def restart(self, handle: Handle, logs: Path) -> Handle:
        """End one component and start it anew."""
        self.stop([handle])
        return self.start(handle.component, logs)

    def describe(self) -> Mapping[str, str]:
        """Return the place of the engine."""
        return {"name": self.name, "engine": self._launch.engine.where}

    def clear(self) -> None:
        """Remove the tier's folders."""
        remove_tier_folders(self._launch)


def placed_here(launch: Launch) -> Placement:
    """Return the placement of a boot whose components all run on this machine.

    Raises:
        ConfigError: Too few GPUs are allotted.
    """
    run = launch.run
    place = Place(tools=launch.engine, model=launch.linked_model(), port=run.ports.take, scratch=run.scratch)
    return all_at(place, launch.profile, launch.gpus)
