"""Start components as containers of an image, each the leader of a session of its own.

A container's output goes to the log file of its component, whose folder is mounted. Its processes are this user's and
have numbers of this machine, so they are found, counted and ended like those of any other component
(runs/processes.py). Docker is only asked to start a container, for its exit code, and to remove it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_kvcache.config import environment
from pytest_kvcache.engine.container import ALL_GPUS, BindMount, Container, same_path
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.errors import BootError, ConfigError
from pytest_kvcache.runs import containers, processes
from pytest_kvcache.runs.processes import Leader, leader_of
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
from pytest_kvcache.serving.launchers.process import ProcessStarter, placed_here
from pytest_kvcache.serving.plan import ServingPlan, build_plan

#: Script that sends its output to the log, reads secrets from a file, removes the file and becomes the program.
_START = (
    'exec </dev/null >>"$1" 2>&1; if [ "$2" ]; then set -a; . "$2" && rm -f "$2" || exit 1; set +a; fi; '
    'shift 2; exec "$@"'
)
_SIGNALLED = 128
_VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Limit for the exit code: the daemon learns of an end later than the kernel.
_EXIT_CODE_S = 10


def container_of(
    component: Component,
    engine: ImageEngine,
    *,
    name: str,
    log: Path,
    secrets: Path | None,
    scratch: Path,
    mounts: Sequence[BindMount],
    labels: Mapping[str, str],
    gpus: bool,
    allotted: bool = False,
) -> Container:
    """Return the container of a component.

    Args:
        component: Component to run.
        engine: Image to run it in.
        name: Name of the container.
        log: File that its output goes to.
        secrets: File with the secret part of the environment, which `docker inspect` must not show.
        scratch: Folder in which the program starts; also its home, since the image may not know the user.
        mounts: Mounts beside those of the engine and the log's folder.
        labels: Labels to find the container by.
        gpus: Whether servers get GPUs.
        allotted: Whether a server's container sees its own GPUs only, since the caller may not use the others.
    """
    named = tuple(filter(None, component.env.get(_VISIBLE, "").split(",")))
    seen: tuple[str, ...] = ()
    inside: dict[str, str] = {}
    if gpus and component.stage == "servers":
        seen = named if allotted and named else ALL_GPUS
        if seen != ALL_GPUS:
            # Numbers count anew among the GPUs that a container sees.
            inside[_VISIBLE] = ",".join(str(i) if name.isdecimal() else name for i, name in enumerate(named))
    home = {"HOME": str(scratch), "USER": "kvcache", "LOGNAME": "kvcache"}
    return Container(
        image=engine.image_id,
        argv=("sh", "-c", _START, "kvcache", str(log), str(secrets or ""), *component.argv),
        name=name,
        env={**home, **no_proxy(), **component.env, **inside},
        mounts=(*engine.mounts, *mounts, same_path(log.parent, writable=True)),
        workdir=scratch,
        labels=labels,
        gpus=seen,
        maps_root=engine.daemon.rootless,
        pinned=engine.daemon.chooses_processors,
    )


@dataclass
class ContainerHandle:
    """A started container.

    Args:
        component: Component that was started.
        log: File with its output.
        leader: First process of the container, by this machine's process numbers.
        id: Id of the container.
        host: Address of the daemon that runs it.
    """

    component: Component
    log: Path
    leader: Leader
    id: str
    host: str
    _code: int | None = field(default=None, repr=False)

    def exit_code(self) -> int | None:
        """Return None while the container runs; a negative number is the signal that ended it.

        The kernel is asked first, since each answer would cost the daemon work during the measurement.
        """
        if self._code is None and not _lives(self.leader):
            with containers.daemon(self.host) as client:
                code = client.containers.get(self.id).wait(timeout=_EXIT_CODE_S)["StatusCode"]
            self._code = _SIGNALLED - code if code > _SIGNALLED else code
        return self._code


class DockerLauncher:
    """Starts containers that belong to a run, and processes of this machine for programs that the image lacks.

    Args:
        launch: The boot; its engine is an image.

    Raises:
        ConfigError: The engine is no image.
    """

    name = "docker"

    def __init__(self, launch: Launch) -> None:
        if not isinstance(launch.engine, ImageEngine):
            raise ConfigError(
                f"launcher docker starts containers, and the engine is no image: {launch.engine.where}",
                where="launcher",
                todo="name an image: --kv-engine=image:REPO:TAG",
            )
        self._launch, self._session, self._engine = launch, launch.run, launch.engine
        scratch = same_path(launch.run.scratch, writable=True)
        reads = [same_path(launch.model)] if launch.model else []
        self._mounts = (scratch, *reads, *(same_path(path, writable=True) for path in launch.tier.folders))
        self._processes = ProcessStarter(launch.run)

    def plan(self) -> ServingPlan:
        """Return the plan of a pair that listens on loopback, since its containers have this machine's network."""
        return build_plan(self._launch.profile, self._launch.tier, placed_here(self._launch))

    def prepare(self) -> None:
        """Make the tier's folders, which containers then mount."""
        make_folders(self._launch)

    def restart(self, handle: Handle, logs: Path) -> Handle:
        """End one component and start it anew, in a container of its own."""
        if not isinstance(handle, ContainerHandle):
            self._processes.stop([handle])
            return self.start(handle.component, logs)
        self._session.end_processes([handle.leader])
        with containers.daemon(handle.host) as client:
            client.containers.get(handle.id).remove(force=True, v=True)
        remove_folders(handle.component)
        return self.start(handle.component, logs)

    def describe(self) -> Mapping[str, str]:
        """Return the image and the daemon."""
        return {
            "name": self.name,
            "engine": self._engine.where,
            "image": self._engine.image_id,
            "digest": self._engine.digest,
            "daemon": str(self._engine.daemon),
        }

    def clear(self) -> None:
        """Remove the tier's folders."""
        remove_tier_folders(self._launch)

    def start(self, component: Component, logs: Path) -> Handle:
        """Start `component`; its output, and that of all processes it starts, goes to `logs`/NAME.log.

        Raises:
            BootError: The daemon did not start the container.
        """
        if self._engine.is_local(component.argv[0]):
            return self._processes.start(component, logs)
        log = prepared_log(component, logs)
        container = container_of(
            component,
            self._engine,
            name=f"{self._session.scratch.name}-{component.name}",
            log=log,
            secrets=self._write_secrets(component),
            scratch=self._session.scratch,
            mounts=self._mounts,
            labels={containers.LABEL: self._session.id},
            gpus=self._launch.profile.gpus_per_server > 0,
            allotted=self._launch.gpus is not None,
        )
        host = self._session.own_containers()
        try:
            with self._session.making(), containers.daemon(host) as client:
                started = client.containers.create(**container.sdk())
                started.start()
                started.reload()
                leader = leader_of(started.attrs["State"]["Pid"], log)
                self._session.own_process(leader)
        except ConfigError as error:
            raise BootError(f"{component.name} did not start: {error.what}", where=self._engine.where) from None
        return ContainerHandle(component, log, leader, started.id, host)

    def stop(self, handles: list[Handle]) -> None:
        """End the components of `handles` and all processes that they started, side by side."""
        ours = [handle for handle in handles if isinstance(handle, ContainerHandle)]
        self._processes.stop([handle for handle in handles if not isinstance(handle, ContainerHandle)])
        self._session.end_processes([handle.leader for handle in ours])
        self._session.remove_containers()
        for handle in ours:
            remove_folders(handle.component)

    def _write_secrets(self, component: Component) -> Path | None:
        # A container gets nothing of the caller's environment, so the credentials for an engine go into this file.
        passed = environment.credentials(os.environ) if component.stage == "servers" else {}
        secrets = {**passed, **component.secret_env}
        if not secrets:
            return None
        path = self._session.scratch / f"{component.name}.env"
        lines = [f"{key}={shlex.quote(value)}\n" for key, value in secrets.items()]
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text("".join(lines), encoding="utf-8")
        return path


def _lives(leader: Leader) -> bool:
    try:
        process = psutil.Process(leader.pid)
        return process.status() != psutil.STATUS_ZOMBIE and processes.is_same(leader)
    except psutil.NoSuchProcess:
        return False
