"""Checks of the machine: GPUs, processor, memory, limits, ports."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.preflight.check import Check, Finding
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.telemetry.hardware import gpus as models

_GIB = 1 << 30
#: Resident memory of a vLLM server beside KV, seen with the smallest model on the CPU build.
_SERVER_BYTES = int(2.3 * _GIB)
#: vLLM's processes talk over shared memory; a container's default of 64 MiB is too little.
_LEAST_SHM = 256 << 20
#: Sockets, libraries and stored objects of two servers; below it vLLM itself warns.
_OPEN_FILES, _LEAST_OPEN_FILES = 8192, 1024
#: Of one pair, its LMCache servers and their balancer, with some to spare.
_PORTS = 20

#: What `nvidia-smi --query-gpu` (NVML) is asked for.
_FIELDS = (
    "index", "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "power.limit",
    "power.default_limit", "ecc.mode.current", "ecc.errors.uncorrected.volatile.total", "mig.mode.current",
)  # fmt: skip
QUERY = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
#: Of a GPU's memory (MiB) that a driver and a display may hold.
_IDLE_MIB = 1024


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as `nvidia-smi` describes it; None where the GPU does not say.

    Args:
        index: Its number.
        name: Its model.
        driver: Version of the driver.
        memory_mib: In all.
        used_mib: By anybody.
        clock_mhz: Of the multiprocessors, now.
        most_clock_mhz: The highest one.
        power_w: The limit.
        default_power_w: The limit that it is delivered with.
        ecc: Whether memory errors are corrected.
        uncorrected: Memory errors that were not, since the driver was loaded.
        mig: Whether it is cut into instances.
    """

    index: str
    name: str
    driver: str
    memory_mib: float | None
    used_mib: float | None
    clock_mhz: float | None
    most_clock_mhz: float | None
    power_w: float | None
    default_power_w: float | None
    ecc: bool
    uncorrected: float | None
    mig: bool

    def describe(self) -> str:
        """Return one line."""
        memory = f"{(self.memory_mib or 0) / 1024:.0f} GiB"
        clocks = f"{self.clock_mhz or 0:.0f} of {self.most_clock_mhz or 0:.0f} MHz"
        ecc = "ECC" if self.ecc else "no ECC"
        return f"{self.index}: {self.name}, {memory}, {clocks}, {self.power_w or 0:.0f} W, {ecc}"


def checks(profile: Profile, *, offloads: bool) -> list[Check]:
    """Return what to look at on the machine for a profile.

    Args:
        profile: To be served.
        offloads: Whether a tier with LMCache is meant.
    """
    l1 = int(profile.servers * profile.l1_size_gb * 1e9) if offloads else 0
    shared = l1 if profile.lmcache_mode == "mp" else 0
    memory = l1 + profile.servers * _SERVER_BYTES
    return [
        Check("GPUs", lambda: gpus(profile.servers * profile.gpus_per_server)),
        Check("CPU governor", governor),
        Check("memory", lambda: free_memory(memory)),
        Check("open files", open_files),
        Check("shared memory", lambda: shm(shared)),
        Check("ports", ports),
    ]


def parse_gpus(text: str) -> list[Gpu]:
    """Return the GPUs in the answer to `QUERY`."""
    return [_gpu(row) for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == len(_FIELDS)]


def gpus(needed: int, *, query: Callable[[], str] | None = None) -> Finding:
    """Look at number, memory in use, ECC, MIG and power limit of the GPUs.

    Args:
        needed: By all servers of the profile; 0 serves on the CPU.
        query: Returns the answer to `QUERY`.
    """
    if needed == 0:
        return Finding("pass", "none needed")
    if query is None and shutil.which(QUERY[0]) is None:
        known = models()
        if len(known) >= needed:
            return Finding("warn", f"{', '.join(known)}; nothing to ask about them", "install nvidia-smi")
        return Finding(
            "fail", f"{len(known)} of {needed}", "take a profile with gpus_per_server = 0, or another machine"
        )
    found = parse_gpus((query or _ask)())
    text = "; ".join(gpu.describe() for gpu in found) or "none"
    if found:
        text += f"; driver {found[0].driver}"
    if len(found) < needed:
        return Finding(
            "fail", f"{len(found)} of {needed}: {text}", "take a profile with fewer servers, or another machine"
        )
    faults = [fault for gpu in found for fault in _faults(gpu)]
    broken = any(gpu.uncorrected for gpu in found)
    if not faults:
        return Finding("pass", text)
    return Finding("fail" if broken else "warn", f"{text}; {'; '.join(faults)}", "see nvidia-smi -q")


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
    """Look at whether L1 of all LMCache servers and the vLLM servers fit.

    Args:
        needed: In all (bytes).
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
        limits: Soft and hard; by default this process's.
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
        needed: By the L1 of LMCache servers, which is there in the multi-process mode (bytes).
        folder: Where it is mounted.
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


def _ask() -> str:
    done = subprocess.run(QUERY, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise OSError(f"nvidia-smi: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout


def _gpu(row: Sequence[str]) -> Gpu:
    values = dict(zip(_FIELDS, row, strict=True))
    number = {name: _number(text) for name, text in values.items()}
    return Gpu(
        index=values["index"],
        name=values["name"],
        driver=values["driver_version"],
        memory_mib=number["memory.total"],
        used_mib=number["memory.used"],
        clock_mhz=number["clocks.sm"],
        most_clock_mhz=number["clocks.max.sm"],
        power_w=number["power.limit"],
        default_power_w=number["power.default_limit"],
        ecc=values["ecc.mode.current"] == "Enabled",
        uncorrected=number["ecc.errors.uncorrected.volatile.total"],
        mig=values["mig.mode.current"] == "Enabled",
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        # "[N/A]", "[Not Supported]"
        return None


def _faults(gpu: Gpu) -> list[str]:
    found = []
    if gpu.uncorrected:
        found.append(f"GPU {gpu.index} has {gpu.uncorrected:.0f} uncorrected memory errors")
    if gpu.mig:
        found.append(f"GPU {gpu.index} is cut into MIG instances")
    if gpu.power_w and gpu.default_power_w and gpu.power_w < gpu.default_power_w:
        found.append(f"GPU {gpu.index} is limited to {gpu.power_w:.0f} of {gpu.default_power_w:.0f} W")
    if (gpu.used_mib or 0) > _IDLE_MIB:
        found.append(f"GPU {gpu.index} has {gpu.used_mib:.0f} MiB in use by others")
    return found
