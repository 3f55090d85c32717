"""Places LMCache in the guest, with its vLLM where it is inside one, and all else in the lab's network namespace."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from lab.pnfs import doctor, record
from lab.pnfs.control import GuestControl
from lab.pnfs.guest import GuestProcess
from lab.pnfs.lab import LABEL, Lab
from lab.pnfs.of_guest import GuestAccount
from lab.pnfs.tier import GUEST, attached, guest_scratch, placement
from pytest_kvcache.errors import BootError, ConfigError, RunError
from pytest_kvcache.runs import signals
from pytest_kvcache.runs.processes import Leader, leader_of
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Launch, prepared_log
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.nodes.relay import relayed
from pytest_kvcache.serving.places import Place
from pytest_kvcache.serving.plan import ServingPlan, build_plan

#: Sessions of earlier boots that a killed pytest left in the guest.
_LEFT = "/run/kvcache-sessions"
_GRACE_S, _FORCED_S, _POLL_S = 5.0, 3.0, 0.05
_SIGNALLED = 128


@dataclass
class GuestHandle:
    """A component that runs in the guest.

    Args:
        component: Component that was started.
        log: File of the host with its output.
        process: The command in the guest.
        leader: The guest itself, as a process of the host.
    """

    component: Component
    log: Path
    process: GuestProcess
    leader: Leader

    def exit_code(self) -> int | None:
        """Return None while the component runs; a negative number is the signal that ended it.

        Raises:
            RunError: The guest has ended.
        """
        code = self.process.poll()
        return code if code is None or code <= _SIGNALLED else _SIGNALLED - code


class LabLauncher:
    """Boots a pair with its LMCache in the guest of a lab.

    Args:
        launch: The boot; its tier is one of the lab.

    Raises:
        ConfigError: The tier is not of the lab.
        SetupError: No lab is up, or this session is outside of its namespace.
    """

    name = "pnfs-lab"

    def __init__(self, launch: Launch) -> None:
        account = launch.tier.storage_account
        if not isinstance(account, GuestAccount):
            raise ConfigError(
                f"places LMCache where the lab's storage is, and tier {launch.tier.label} has another one",
                where="launcher pnfs-lab",
                todo='take it with kind = "lab.pnfs.tier:PnfsLabTier" alone',
            )
        self._launch, self._account, self._lab = launch, account, attached()
        self._here = ProcessStarter(launch.run)
        self._scratch = guest_scratch(launch.run.scratch)
        self._leader = guest_leader(self._lab)

    def plan(self) -> ServingPlan:
        """Return the plan: LMCache listens on the guest's address, all else on the namespace's loopback."""
        launch = self._launch
        here = Place(launch.engine, launch.linked_model(), launch.run.ports.take, launch.run.scratch)
        placed = placement(here, launch.profile)
        plan = build_plan(launch.profile, launch.tier, placed)
        if launch.profile.lmcache_mode == "mp":
            return plan
        key = secrets.token_hex(16)
        plan = relayed(plan, {GUEST: placed.servers[0]}, {GUEST: Path(sys.executable)}, key)
        return replace(plan, control=GuestControl(self._lab, key))

    def prepare(self) -> None:
        """Show the guest engine and logs, and make the tier's folder there, which must not be there yet."""
        self._end_what_is_left()
        python = Path(self._launch.engine.python)
        self._show(python.parents[1])
        if self._lab.run(["test", "-x", str(python)], check=False).code:
            self._show(python.resolve().parents[1])  # the interpreter that the environment was made of
        self._show(self._launch.run.folder, writable=True)
        folder = self._account.folders[0]
        self._lab.guest.shell(f"mkdir {shlex.quote(folder)}; mkdir -p -m 700 {shlex.quote(str(self._scratch))}")
        if (model := self._launch.model) is not None and self._launch.profile.lmcache_mode == "in-process":
            self._show(model)
            self._lab.guest.shell(f"ln -s {shlex.join([str(model), str(self._scratch / model.name)])}")
        # The guest's work is the run's: else the run would be suspect of other programs' work beside it.
        self._launch.run.borrow_process(self._leader)

    def start(self, component: Component, logs: Path) -> Handle:
        """Start a component at its place, with its output in `logs`/NAME.log of the host.

        Raises:
            BootError: It could not be started.
        """
        if component.place != GUEST:
            return self._here.start(component, logs)
        log = prepared_log(component, logs)
        try:
            with signals.deferred():
                self._write(component)
                process = self._lab.exec(component.argv, env=_environment(component), cwd=str(self._scratch), log=log)
                self._lab.guest.shell(f"echo {process.pid} >> {_LEFT}")
        except RunError as error:
            raise BootError(
                f"{component.name} did not start: {error.what}", where=error.where, todo=error.todo
            ) from None
        return GuestHandle(component, log, process, self._leader)

    def stop(self, handles: list[Handle]) -> None:
        """End components and all that they started: in the guest politely, after a while by force; and on the host."""
        inside = [handle for handle in handles if isinstance(handle, GuestHandle)]
        with contextlib.suppress(RunError):  # a guest that has ended runs nothing
            self._end(inside)
        self._here.stop([handle for handle in handles if not isinstance(handle, GuestHandle)])

    def restart(self, handle: Handle, logs: Path) -> Handle:
        """End one component and start it anew."""
        self.stop([handle])
        return self.start(handle.component, logs)

    def describe(self) -> Mapping[str, str]:
        """Return where the components run, with what no figure of the lab says."""
        return {
            "name": self.name,
            "engine": self._launch.engine.where,
            "lab": self._lab.id,
            "lmcache": f"guest {self._lab.guest_address}, {', '.join(self._account.folders)}",
            "label": LABEL,
        }

    def clear(self) -> None:
        """Remove the tier's folder, and what else the guest has of the run."""
        self._launch.run.return_process(self._leader)
        folder, results = self._account.folders[0], str(self._launch.run.folder)
        try:
            self._lab.guest.shell(f"rm -rf {shlex.join([folder, str(self._scratch), _LEFT])}")
            self._lab.run(["umount", results], check=False)  # it is shown anew to the next boot
        except RunError as error:
            if self._lab.is_alive:
                self._launch.say(f"could not remove {folder} in the guest: {error.what}")

    def _write(self, component: Component) -> None:
        """Make the folders and files of a component in the guest."""
        for folder in component.folders:
            self._lab.guest.shell(f"mkdir -p -m 700 {shlex.quote(str(folder))}")
        for path, text in component.files.items():
            written = self._lab.write(f"{secrets.token_hex(4)}-{path.name}", text)
            self._lab.guest.shell(f"cp {shlex.join([written, str(path)])}")

    def _show(self, folder: Path, *, writable: bool = False) -> None:
        if self._lab.run(["mountpoint", "-q", str(folder)], check=False).code:
            self._lab.show(folder, writable=writable)

    def _end(self, handles: Sequence[GuestHandle]) -> None:
        for name, grace_s in (("TERM", _GRACE_S), ("KILL", _FORCED_S)):
            sessions = _living([handle.process.pid for handle in handles], self._lab)
            if not sessions:
                return
            self._lab.guest.shell(f"pkill -{name} -s {','.join(map(str, sessions))} || true")
            until_s = time.monotonic() + grace_s
            while _living(sessions, self._lab) and time.monotonic() < until_s:
                time.sleep(_POLL_S)

    def _end_what_is_left(self) -> None:
        """End what a session left in the guest that was killed: nobody else's, since one session at a time measures."""
        self._lab.guest.shell(
            f"if [ -e {_LEFT} ]; then while read -r pid; do pkill -KILL -s $pid || true; done < {_LEFT}; rm {_LEFT}; fi"
        )


def guest_leader(lab: Lab) -> Leader:
    """Return the guest's first process on the host, whose session has all that the guest does.

    Raises:
        RunError: The lab has no guest that runs.
    """
    keeper = record.keeper_of(record.read(lab.folder))
    children = psutil.Process(keeper).children() if keeper is not None else []
    if not children:
        raise RunError("has no guest that runs", where=f"lab {lab.id}")
    return leader_of(children[0].pid, lab.folder / "console.log")


def _environment(component: Component) -> dict[str, str]:
    """Return a component's variables in the guest, which sees the host's folders read-only.

    They stand in a file that only root can read, until the lab is taken down. The only secret among them is the key of
    the boot: the lab's storage has no credentials.
    """
    ours = doctor.environment() if component.argv[0] == sys.executable else {}
    return {"PYTHONDONTWRITEBYTECODE": "1", **ours, **component.env, **component.secret_env}


def _living(sessions: Sequence[int], lab: Lab) -> list[int]:
    """Return those of the guest's sessions that have processes."""
    if not sessions:
        return []
    done = lab.run(["ps", "-o", "sid=,stat=", "-s", ",".join(map(str, sessions))], check=False)
    rows = (line.split() for line in done.output.splitlines())
    return sorted({int(sid) for sid, stat in rows if not stat.startswith("Z")})
