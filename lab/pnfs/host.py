"""What the host needs for a lab, and lacks: a line each, with the command that brings it."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.errors import SetupError

#: Programs by the Debian package that has them. To build, and to run.
_TO_BUILD = {
    "gcc": "gcc", "make": "make", "bc": "bc", "xz": "xz-utils", "perl": "perl", "apt-get": "apt", "dpkg-deb": "dpkg",
}  # fmt: skip
_TO_RUN = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux"}
#: A header of the C library's development package.
_HEADER = Path("/usr/include/stdio.h")
_TUN = Path("/dev/net/tun")
#: Linux sources that Debian's releases have, by the release's name.
_SERIES = {"bookworm": "6.1"}


@dataclass(frozen=True)
class Release:
    """The host's Debian release, of which the guest's programs are too: the host's Python runs in the guest.

    Args:
        name: Name of the release (`bookworm`).
        series: Version of its `linux-source` package.
    """

    name: str
    series: str


def lacking(*, build: bool) -> list[str]:
    """Return what the host lacks for a lab, a line each; empty where it lacks nothing.

    Args:
        build: Whether kernel and root folder have to be built too.
    """
    lines = []
    if platform.machine() != "x86_64":
        lines.append(f"an x86-64 processor: this one is {platform.machine()}, which no lab was tried on")
    if os.geteuid() != 0:
        lines.append("root: only root makes namespaces and tap devices; run it with sudo")
    if not _is_device(_TUN):
        lines.append(f"{_TUN}: sudo modprobe tun; in a container: docker run --privileged")
    programs = {**_TO_RUN, **(_TO_BUILD if build else {})}
    lines += [
        f"{program}: sudo apt-get install -y {package}"
        for program, package in programs.items()
        if shutil.which(program) is None
    ]
    if build and not _HEADER.exists():
        lines.append(f"{_HEADER}: sudo apt-get install -y libc6-dev")
    if build and _codename() not in _SERIES:
        lines.append(
            f"Debian {' or '.join(_SERIES)}: programs and kernel of the guest come from the host's own release, this "
            f"host is {_codename() or 'no Debian'}: run it in a container of debian:12 (docs/pnfs-lab.md)"
        )
    return lines


def check(*, build: bool) -> None:
    """Check that the host has what a lab needs.

    Raises:
        SetupError: It lacks something.
    """
    lines = lacking(build=build)
    if lines:
        raise SetupError("this host lacks " + "; ".join(lines), where="pnfs-lab", todo="see docs/pnfs-lab.md")


def release() -> Release:
    """Return the host's release.

    Raises:
        SetupError: No lab can be built on it.
    """
    name = _codename()
    if name not in _SERIES:
        raise SetupError(f"no lab can be built on {name or 'this system'}", where="/etc/os-release")
    return Release(name, _SERIES[name])


def _codename() -> str:
    try:
        fields = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
    except OSError:
        return ""
    return fields.get("VERSION_CODENAME", "").strip('"') if fields.get("ID", "").strip('"') == "debian" else ""


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
