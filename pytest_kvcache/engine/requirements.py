"""Requirements of the CPU engine environment's lock files on a machine."""

from __future__ import annotations

import ctypes.util
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

_PYTHONS = ((3, 11), (3, 13))
_DISK_GB = 8
_GLIBC = (2, 31)


@dataclass(frozen=True)
class Requirement:
    """One thing that the lock needs of the machine.

    Args:
        name: Name of the requirement.
        met: Whether the machine has it.
        found: What the machine has instead.
        todo: What to do where it is not met.
    """

    name: str
    met: bool
    found: str
    todo: str


def requirements(target: Path) -> list[Requirement]:
    """Check what the lock needs of the machine: CPython, Linux on x86-64 with AVX2, glibc, libnuma and free disk."""
    version = sys.version_info[:2]
    flags = _cpu_flags()
    libc = platform.libc_ver()
    free_gb = shutil.disk_usage(_existing(target)).free / 1e9
    return [
        Requirement(
            "CPython 3.11 to 3.13",
            platform.python_implementation() == "CPython" and _PYTHONS[0] <= version <= _PYTHONS[1],
            f"{platform.python_implementation()} {platform.python_version()}",
            "use another Python for the plugin's environment",
        ),
        Requirement(
            "Linux on x86-64",
            sys.platform == "linux" and platform.machine() == "x86_64",
            f"{sys.platform} on {platform.machine()}",
            "point --kv-engine at an environment with a vLLM for this machine",
        ),
        Requirement("AVX2", "avx2" in flags, "a processor without it", "use another machine, or --kv-engine"),
        Requirement(
            "glibc 2.31 or newer",
            libc[0] == "glibc" and tuple(int(x) for x in libc[1].split(".")[:2]) >= _GLIBC,
            " ".join(libc).strip() or "another C library",
            "use a newer distribution, or --kv-engine",
        ),
        Requirement(
            "libnuma.so.1",
            ctypes.util.find_library("numa") is not None,
            "not installed",
            "install it (Debian and Ubuntu: apt-get install libnuma1)",
        ),
        Requirement(
            f"{_DISK_GB} GB of free disk",
            free_gb >= _DISK_GB,
            f"{free_gb:.1f} GB at {_existing(target)}",
            "free some, or set PYTEST_KVCACHE_HOME to a folder on a larger disk",
        ),
    ]


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((x for x in text.splitlines() if x.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
