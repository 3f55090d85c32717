"""Checks of the machine: GPUs, processor, memory, limits, ports."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from pytest_kvcache.check import Check, Finding
from pytest_kvcache.config import environment
from pytest_kvcache.config.cautions import cautions
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.preflight import gpus
from pytest_kvcache.runs.ports import free_ports

_GIB = 1 << 30
#: Resident memory of a vLLM server beside KV, measured with the smallest model on the CPU build.
_SERVER_BYTES = int(2.3 * _GIB)
#: vLLM's processes talk over shared memory; a container's default of 64 MiB is too little.
_LEAST_SHM = 256 << 20
#: Enough for sockets, libraries and stored objects of two servers; vLLM itself warns below this.
_OPEN_FILES, _LEAST_OPEN_FILES = 8192, 1024
#: Ports of one pair, its LMCache servers and its balancer, with some to spare.
_PORTS = 20


def checks(profile: Profile, *, offloads: bool, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Return the checks of the machine for a profile.

    Args:
        profile: Profile to serve.
        offloads: Whether the tier uses LMCache.
        environ: Environment of the caller, which may allot GPUs and have settings that are withheld from processes.
    """
    l1 = l1_bytes(profile) if offloads else 0
    shared = l1 if profile.lmcache_mode == "mp" else 0
    memory = l1 + profile.servers * profile.ranks * _SERVER_BYTES
    return [
        Check("GPUs", lambda: gpus.of_profile(profile, environ)),
        Check("environment", lambda: surroundings(environ)),
        Check("profile", lambda: of_profile(profile, offloads=offloads)),
        Check("CPU governor", governor),
        Check("memory", lambda: free_memory(memory)),
        Check("open files", open_files),
        Check("shared memory", lambda: shm(shared)),
        Check("ports", ports),
    ]


def l1_bytes(profile: Profile) -> int:
    """Return the RAM that LMCache takes for L1 on all servers.

    Inside vLLM each rank pins `max_local_cpu_size` (GiB) for itself (`LocalCPUBackend`, LMCache 0.5.6);
    a server beside vLLM takes its `--l1-size-gb` (GiB) once for all ranks.
    """
    each = profile.ranks if profile.lmcache_mode == "in-process" else 1
    return int(profile.servers * each * profile.l1_size_gb * _GIB)


def surroundings(environ: Mapping[str, str]) -> Finding:
    """Look at settings of vLLM and LMCache that the caller has and no process of a run will get."""
    names = environment.overriding(environ)
    if names:
        return Finding("warn", f"withheld: {', '.join(names)}", "set what a run needs of them in the profile's env")
    return Finding("pass", "no setting of vLLM or LMCache is in it")


def of_profile(profile: Profile, *, offloads: bool) -> Finding:
    """Look for settings of the profile that may go wrong."""
    found = cautions(profile, offloads=offloads)
    return Finding("warn", "; ".join(found)) if found else Finding("pass", f"workers of each server: {profile.ranks}")


def governor(cpus: Path = Path("/sys/devices/system/cpu")) -> Finding:
    """Look at whether processors run at their highest clock."""
    found = {p.read_text(encoding="utf-8").strip() for p in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    if not found:
        return Finding("pass", "the machine shows no frequency scaling (virtual machines do not)")
    text = ", ".join(sorted(found))
    if found == {"performance"}:
        return Finding("pass", text)
    return Finding("warn", text, "cpupower frequency-set -g performance")


def free_memory(needed: int) -> Finding:
    """Look at whether L1 of all LMCache servers and the vLLM servers fit into RAM.

    Args:
        needed: RAM that they need in all (bytes).
    """
    memory = psutil.virtual_memory()
    text = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free; L1 and servers: {needed / _GIB:.1f}"
    if needed > memory.total:
        return Finding("fail", text, "lower l1_size_gb of the profile, or take another machine")
    if needed > memory.available:
        return Finding("warn", text, "end what else runs, or lower l1_size_gb of the profile")
    return Finding("pass", text)


def open_files(limits: tuple[int, int] | None = None) -> Finding:
    """Look at how many files a process may open.

    Args:
        limits: Soft and hard limit; None for those of this process.
    """
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    words = ["unlimited" if x == resource.RLIM_INFINITY else str(x) for x in (soft, hard)]
    text = f"{words[0]}, at most {words[1]}"
    todo = f"ulimit -n {_OPEN_FILES} (nofile in limits.conf, LimitNOFILE= of a unit, --ulimit nofile= of docker run)"
    if hard != resource.RLIM_INFINITY and hard < _LEAST_OPEN_FILES:
        return Finding("fail", text, todo)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        return Finding("warn", text, todo)
    return Finding("pass", text)


def shm(needed: int, folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - looked at, not used
    """Look at whether shared memory suffices.

    Args:
        needed: Bytes for the L1 of LMCache servers, which is in shared memory in the multi-process mode.
        folder: Where shared memory is mounted.
    """
    if not folder.is_dir():
        return Finding("fail", "not mounted", "mount -t tmpfs tmpfs /dev/shm")
    stat = os.statvfs(folder)
    free, least = stat.f_bavail * stat.f_frsize, needed + _LEAST_SHM
    text = f"{free / _GIB:.2f} GiB free; needed: {least / _GIB:.2f}"
    if free < least:
        return Finding("fail", text, "docker run --shm-size, or mount -o remount,size=… /dev/shm; or lower l1_size_gb")
    return Finding("pass", text)


def ports(free: Callable[[int], Sequence[int]] = free_ports) -> Finding:
    """Look at whether a pair will find ports to listen on."""
    found = len(free(_PORTS))
    if found < _PORTS:
        return Finding("fail", f"only {found} of {_PORTS} found free", "ss -ltn shows who has them")
    return Finding("pass", f"{found} found free at once")
