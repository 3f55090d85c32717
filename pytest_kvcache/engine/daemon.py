"""What kind of daemon makes the containers, from what it says of itself, and whether a pair can run in them (pure)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_kvcache.errors import ConfigError

_PODMAN, _ROOTLESSKIT = "Podman Engine", "rootlesskit"
#: RootlessKit's name for the network of whoever started it.
_HOST_NETWORK = "host"
_OTHER_DAEMON = "use the machine's own daemon: `docker context use default`, or DOCKER_HOST=unix:///var/run/docker.sock"


@dataclass(frozen=True)
class Daemon:
    """A daemon, as `info` and `version` of its API describe it.

    Args:
        product: `Docker` or `Podman`.
        version: Of the product.
        name: The host that it runs on, as it calls it.
        rootless: Whether it runs as a user: root in its containers is that user, and their other users are nobody here.
        remapped: Whether its containers have a user namespace unless they ask for the host's (`userns-remap`).
        network: How containers of rootless Docker get a network (RootlessKit's driver), "" where it is not said.
        system: `linux`, or what else its containers are of.
        desktop: Whether it is Docker Desktop's, in a virtual machine.
        cgroup: Driver and version of its control groups.
        chooses_processors: Whether a container can be given some of the processors only.
        processors: How many it has.
    """

    product: str = "Docker"
    version: str = ""
    name: str = ""
    rootless: bool = False
    remapped: bool = False
    network: str = ""
    system: str = "linux"
    desktop: bool = False
    cgroup: str = ""
    chooses_processors: bool = True
    processors: int = 0

    def __str__(self) -> str:
        """Return what a person would call it."""
        kind = ["rootless"] if self.rootless else []
        kind += ["userns-remap"] if self.remapped else []
        kind += [f"cgroup {self.cgroup}"] if self.cgroup else []
        return ", ".join([f"{'Docker Desktop' if self.desktop else self.product} {self.version}".strip(), *kind])

    @property
    def is_podman(self) -> bool:
        """Whether it is Podman, which serves Docker's API."""
        return self.product == "Podman"


def described(info: Mapping[str, Any], version: Mapping[str, Any]) -> Daemon:
    """Return the daemon that two answers of the API describe.

    Args:
        info: Of `GET /info`.
        version: Of `GET /version`.
    """
    components = {str(each.get("Name")): each for each in version.get("Components") or ()}
    options = {name for text in info.get("SecurityOptions") or () for name in str(text).split(",")}
    podman = components.get(_PODMAN)
    # Docker before 20 said neither driver nor version in all cases, and Podman 3 no version.
    driver, number = str(info.get("CgroupDriver") or ""), str(info.get("CgroupVersion") or "")
    rootless = "name=rootless" in options or bool(info.get("Rootless"))
    # Rootless Podman takes limits under cgroup v1, ignores them, and says all the same that it has them.
    limits = driver != "none" and not (rootless and number != "2")
    kit: Mapping[str, Any] = components.get(_ROOTLESSKIT, {}).get("Details") or {}
    return Daemon(
        product="Podman" if podman else "Docker",
        version=str((podman or {}).get("Version") or info.get("ServerVersion") or version.get("Version") or ""),
        name=str(info.get("Name") or ""),
        rootless=rootless,
        remapped="name=userns" in options,
        network=str(kit.get("NetworkDriver") or ""),
        system=str(info.get("OSType") or "linux"),
        desktop="Docker Desktop" in str(info.get("OperatingSystem") or ""),
        cgroup=f"v{number} by {driver}" if number and driver and driver != "none" else driver,
        chooses_processors=limits and bool(info.get("CPUSet", True)),
        processors=int(info.get("NCPU") or 0),
    )


def check_daemon(daemon: Daemon, *, where: str, processors: Sequence[int]) -> None:
    """Refuse a daemon whose containers cannot be what a run needs: processes of this machine and of this user.

    Args:
        daemon: As it describes itself.
        where: Its address, for errors.
        processors: Those that this process may use.

    Raises:
        ConfigError: A line with what the daemon is, what its containers lack, and what to use in its place.
    """
    for lacks, todo in _lacks(daemon, len(processors)):
        raise ConfigError(f"{daemon}: {lacks}", where=where, todo=todo)


def check_gpus(daemon: Daemon, *, where: str) -> None:
    """Refuse a daemon that cannot give GPUs to a container as Docker does.

    Raises:
        ConfigError: It is Podman.
    """
    if daemon.is_podman:
        # Podman before 5 takes the request, gives no GPU, and says nothing.
        raise ConfigError(
            f"{daemon}: it does not give GPUs to a container that asks in Docker's way (it has CDI names for them)",
            where=where,
            todo="serve profiles with GPUs from Docker, or from an environment on this machine",
        )


def _lacks(daemon: Daemon, processors: int) -> Iterable[tuple[str, str]]:
    if daemon.system != "linux":
        yield f"its containers are of {daemon.system}, and vLLM's are of Linux", "switch it to Linux containers"
    if daemon.desktop:
        yield "its containers are in a virtual machine, without this machine's network and memory", _OTHER_DAEMON
    if daemon.rootless and not daemon.is_podman and daemon.network != _HOST_NETWORK:
        yield (
            f"its containers have RootlessKit's network ({daemon.network or 'slirp4netns'}), "
            "not this machine's loopback",
            f"{_OTHER_DAEMON}; or rootless Podman; or DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host for dockerd-rootless.sh",
        )
    if not daemon.chooses_processors and daemon.processors and processors < daemon.processors:
        yield (
            f"it cannot keep containers to the {processors} processors of pytest (of {daemon.processors})",
            "delegate the cgroup controller cpuset to the user, or start pytest on all processors",
        )


def processors_here() -> tuple[int, ...]:
    """Return the processors that this process may use, which are those of a run."""
    return tuple(sorted(os.sched_getaffinity(0)))
