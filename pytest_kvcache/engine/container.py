"""A program in a container, as data: the arguments of the Docker SDK, and the `docker run` that does the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.paths import expanded

_MODES = ("ro", "rw")
#: Value of `Container.gpus` for all GPUs of the machine.
ALL_GPUS = ("all",)


@dataclass(frozen=True)
class BindMount:
    """A file or folder of this machine in a container.

    Args:
        source: Path on this machine.
        target: Path in the container.
        writable: Whether the container may change it.
    """

    source: Path
    target: Path
    writable: bool = False

    def __str__(self) -> str:
        """Return the mount as `docker run --volume` takes it."""
        return f"{self.source}:{self.target}:{'rw' if self.writable else 'ro'}"


def same_path(path: Path, *, writable: bool = False) -> BindMount:
    """Return the mount of `path` under its own name, so that command lines are valid on both sides."""
    return BindMount(path, path, writable)


def parse_mount(text: str, where: str) -> BindMount:
    """Return the mount that `SOURCE[:TARGET][:ro|rw]` describes.

    Without TARGET the mount has the path of its source; without a mode it is read-only.

    Args:
        text: Text as the user wrote it.
        where: The option, for errors.

    Raises:
        ConfigError: The text is not of that form, or the source does not exist.
    """
    parts = text.split(":")
    mode = parts.pop() if parts[-1] in _MODES else "ro"
    try:
        paths = [Path(expanded(part)) for part in parts]
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None
    if len(paths) not in {1, 2} or not all(path.is_absolute() for path in paths):
        raise ConfigError(f"{text!r} is not allowed; allowed: SOURCE[:TARGET][:ro|rw], absolute paths", where=where)
    source = paths[0]
    if not os.path.exists(source):  # noqa: PTH110 - never raises, whatever is wrong with the path
        raise ConfigError(f"{source} is not there", where=where, todo="docker would make an empty folder in its place")
    return BindMount(source, paths[-1], mode == "rw")


@dataclass(frozen=True)
class Container:
    """A program to run in a container, and what of this machine the container gets.

    The container has this machine's network, since a pair talks over loopback ports that the run has leased, and this
    machine's IPC and PID namespaces: LMCache's server maps the KV memory of vLLM's workers from /dev/shm, by names made
    of the workers' process numbers, and CUDA's memory handles name processes too. In namespaces of their own the
    workers of two containers would have the same process numbers, and so take each other's names.

    Args:
        image: Id or name of the image.
        argv: The program and its arguments; the image's entry point is not used.
        name: Name of the container, unique on the machine; None for one that Docker makes up.
        env: Variables added to the image's. Whoever may talk to the daemon can read them: no secret may be among them.
        mounts: Files and folders of this machine that the container sees; it sees no others.
        workdir: Folder in which the program starts.
        labels: Labels to find the container by.
        gpus: NVIDIA GPUs that the container sees, by number, UUID or MIG name; `all` for all of the machine, of
            which CUDA_VISIBLE_DEVICES chooses, as for a process.
        maps_root: Whether the container's root is this user, as of a rootless daemon; there, this user's number would
            be a stranger's.
        pinned: Whether the container is kept to the processors of this process, which needs a daemon that can do it.
    """

    image: str
    argv: tuple[str, ...]
    name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[BindMount, ...] = ()
    workdir: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    maps_root: bool = False
    pinned: bool = True

    def sdk(self) -> dict[str, Any]:
        """Return the arguments of the SDK's `containers.create`."""
        from docker.types import DeviceRequest  # noqa: PLC0415 - heavy, and only where an image is used

        asked = {"count": -1} if self.gpus == ALL_GPUS else {"device_ids": list(self.gpus)}
        return {
            "image": self.image,
            "entrypoint": [self.argv[0]],
            "command": list(self.argv[1:]),
            "name": self.name,
            "environment": dict(self.env),
            "volumes": [str(mount) for mount in self.mounts],
            "working_dir": str(self.workdir) if self.workdir else None,
            "labels": dict(self.labels),
            "device_requests": [DeviceRequest(capabilities=[["gpu"]], **asked)] if self.gpus else None,
            "network_mode": "host",
            "ipc_mode": "host",
            "pid_mode": "host",
            "userns_mode": "host",
            "user": self._user,
            "cpuset_cpus": _cpus() if self.pinned else None,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
        }

    def run_argv(self, inherits: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the `docker run` command that starts the container in the foreground, and removes it afterwards.

        Args:
            inherits: Names of variables that the container takes from the environment of whoever runs the command.
        """
        words = ["docker", "run", "--rm", "--network", "host", "--ipc", "host", "--pid", "host", "--userns", "host"]
        words += ["--user", self._user, *(["--cpuset-cpus", _cpus()] if self.pinned else [])]
        words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options: dict[str, Sequence[str]] = {
            # Docker reads the value of --gpus as a line of CSV.
            "--gpus": []
            if not self.gpus
            else ["all"]
            if self.gpus == ALL_GPUS
            else [f'"device={",".join(self.gpus)}"'],
            "--name": [self.name] if self.name else [],
            "--label": [f"{key}={value}" for key, value in self.labels.items()],
            "--volume": [str(mount) for mount in self.mounts],
            "--workdir": [str(self.workdir)] if self.workdir else [],
            "--env": [*(f"{key}={value}" for key, value in self.env.items()), *inherits],
        }
        words += [word for flag, values in options.items() for value in values for word in (flag, value)]
        return (*words, "--entrypoint", self.argv[0], self.image, *self.argv[1:])

    @property
    def _user(self) -> str:
        """This user and group: the program's files are then this user's, and its processes can be seen and ended."""
        return "0:0" if self.maps_root else f"{os.getuid()}:{os.getgid()}"


def _cpus() -> str:
    """Return the processors that this process may use; unless told, a container gets all that the daemon has."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))
