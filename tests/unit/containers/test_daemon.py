"""Daemons are told apart by what they say of themselves; what cannot run a pair is refused in a line."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_kvcache.engine.daemon import Daemon, check_daemon, check_gpus, described
from pytest_kvcache.engine.image import check, inspect_image
from pytest_kvcache.errors import ConfigError
from tests.stubs.docker import StubDocker

SECCOMP = "name=seccomp,profile=default"


def engine(version: str, *more: dict[str, Any]) -> dict[str, Any]:
    """Return the `/version` of a Docker."""
    return {"Version": version, "Components": [{"Name": "Engine", "Version": version}, {"Name": "containerd"}, *more]}


def kit(network: str) -> dict[str, Any]:
    """Return the component that rootless Docker has beside the others."""
    return {"Name": "rootlesskit", "Version": "2.3.1", "Details": {"NetworkDriver": network, "StateDir": "/run/x"}}


def info(version: str, *options: str, **more: Any) -> dict[str, Any]:
    """Return the `/info` of a daemon on a machine with 8 processors."""
    return {
        "ServerVersion": version,
        "SecurityOptions": [SECCOMP, *options],
        "OSType": "linux",
        "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
        "CgroupDriver": "systemd",
        "CgroupVersion": "2",
        "CPUSet": True,
        "NCPU": 8,
        "Name": "gpu-1",
        **more,
    }


PODMAN_4: dict[str, Any] = {
    "Version": "4.3.1",
    "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}, {"Name": "Conmon"}],
}
PODMAN_5: dict[str, Any] = {
    "Version": "5.4.2",
    "Components": [{"Name": "Podman Engine", "Version": "5.4.2"}, {"Name": "Conmon"}],
}
DESKTOP = {"OperatingSystem": "Docker Desktop", "Name": "docker-desktop", "CgroupDriver": "cgroupfs"}


@pytest.mark.parametrize(
    ("said", "made_of", "name", "refused"),
    [
        pytest.param(
            {**info("20.10.24+dfsg1", CgroupDriver="cgroupfs", CgroupVersion="1")},
            engine("20.10.24+dfsg1"),
            "Docker 20.10.24+dfsg1, cgroup v1 by cgroupfs",
            "",
            id="docker-20-of-debian",
        ),
        pytest.param(
            info("24.0.7", "name=apparmor", "name=cgroupns"),
            engine("24.0.7"),
            "Docker 24.0.7, cgroup v2 by systemd",
            "",
            id="docker-24",
        ),
        pytest.param(info("27.3.1"), engine("27.3.1"), "Docker 27.3.1, cgroup v2 by systemd", "", id="docker-27"),
        pytest.param(
            {"ServerVersion": "19.03.8", "CgroupDriver": "cgroupfs", "NCPU": 8, "SecurityOptions": None},
            {"Version": "19.03.8", "Components": None},
            "Docker 19.03.8, cgroup cgroupfs",
            "",
            id="docker-19-says-less",
        ),
        pytest.param(
            info("27.3.1", "name=userns"),
            engine("27.3.1"),
            "Docker 27.3.1, userns-remap, cgroup v2 by systemd",
            "",
            id="docker-userns-remap",
        ),
        pytest.param(
            info("27.3.1", "name=rootless"),
            engine("27.3.1", kit("slirp4netns")),
            "Docker 27.3.1, rootless, cgroup v2 by systemd",
            r"its containers have RootlessKit's network \(slirp4netns\), not this machine's loopback",
            id="docker-rootless",
        ),
        pytest.param(
            info("20.10.24", "name=rootless"),
            engine("20.10.24"),
            "Docker 20.10.24, rootless, cgroup v2 by systemd",
            r"RootlessKit's network \(slirp4netns\)",
            id="docker-20-rootless-does-not-say-its-network",
        ),
        pytest.param(
            info("27.3.1", "name=rootless"),
            engine("27.3.1", kit("host")),
            "Docker 27.3.1, rootless, cgroup v2 by systemd",
            "",
            id="docker-rootless-on-the-host-network",
        ),
        pytest.param(
            info("28.0.1", **DESKTOP),
            engine("28.0.1"),
            "Docker Desktop 28.0.1, cgroup v2 by cgroupfs",
            "its containers are in a virtual machine",
            id="docker-desktop",
        ),
        pytest.param(
            info("27.3.1", OSType="windows"),
            engine("27.3.1"),
            "Docker 27.3.1, cgroup v2 by systemd",
            "its containers are of windows",
            id="docker-windows-containers",
        ),
        pytest.param(info("4.3.1"), PODMAN_4, "Podman 4.3.1, cgroup v2 by systemd", "", id="podman-4"),
        pytest.param(
            info("5.4.2", "name=rootless", Rootless=True),
            PODMAN_5,
            "Podman 5.4.2, rootless, cgroup v2 by systemd",
            "",
            id="podman-5-rootless",
        ),
        pytest.param(
            info("4.3.1", Rootless=True, CgroupDriver="cgroupfs", CgroupVersion="1"),
            PODMAN_4,
            "Podman 4.3.1, rootless, cgroup v1 by cgroupfs",
            r"it cannot keep containers to the 4 processors of pytest \(of 8\)",
            id="podman-4-rootless-under-cgroup-v1-as-debian-12-has-it",
        ),
        pytest.param(
            info("27.3.1", "name=rootless", CPUSet=False, CgroupDriver="none", CgroupVersion="2"),
            engine("27.3.1", kit("host")),
            "Docker 27.3.1, rootless, cgroup none",
            "it cannot keep containers to the 4 processors",
            id="docker-rootless-without-systemd",
        ),
    ],
)
def test_daemons_are_told_apart(said: dict[str, Any], made_of: dict[str, Any], name: str, refused: str) -> None:
    """Each has a name that a person would know; what its containers lack for a pair is the reason of a refusal."""
    daemon = described(said, made_of)
    assert str(daemon) == name
    if not refused:
        check_daemon(daemon, where="unix:///x", processors=range(4))
        return
    with pytest.raises(ConfigError, match=refused) as caught:
        check_daemon(daemon, where="unix:///x", processors=range(4))
    assert caught.value.what.startswith(f"{name}: ")
    assert caught.value.todo
    assert len(caught.value.what.splitlines()) == 1


def test_all_processors_need_no_cpuset() -> None:
    """A daemon that cannot choose processors serves a pytest that may use all of them."""
    daemon = Daemon("Podman", "4.3.1", rootless=True, chooses_processors=False, processors=8)
    check_daemon(daemon, where="x", processors=range(8))


def test_podman_gives_no_gpus() -> None:
    """It would take Docker's request and give none, without a word: so it is refused for a profile with GPUs."""
    with pytest.raises(ConfigError, match=r"unix:///x: Podman 4\.3\.1: it does not give GPUs"):
        check_gpus(Daemon("Podman", "4.3.1"), where="unix:///x")
    check_gpus(Daemon("Docker", "27.3.1"), where="unix:///x")


def test_a_daemon_is_refused_before_its_images_are_looked_at(daemon: StubDocker) -> None:
    """The reason is the daemon's, also where the image is not there."""
    daemon.described = info("27.3.1", **DESKTOP)
    with pytest.raises(ConfigError, match="Docker Desktop 27"):
        check("nowhere:1")
    daemon.described, daemon.components = info("4.3.1"), PODMAN_4["Components"]
    with pytest.raises(ConfigError, match="does not give GPUs"):
        check("kv:1", gpus=True)
    assert daemon.created == []


def test_a_rootless_daemon_has_root_for_the_user(daemon: StubDocker) -> None:
    """Its containers run as their root, which is this user, on all processors where it cannot choose some."""
    daemon.described, daemon.components = info("5.4.2", "name=rootless", CPUSet=False, NCPU=0), PODMAN_5["Components"]
    engine = inspect_image("kv:1", (), None)
    assert engine.daemon.is_podman
    (asked,) = daemon.created
    assert (asked["user"], asked["cpuset_cpus"]) == ("0:0", None)
