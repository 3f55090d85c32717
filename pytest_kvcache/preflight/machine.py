"""Checks of the machine: GPUs, processor, memory, limits, ports."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_kvcache.config import environment
from pytest_kvcache.config.cautions import cautions
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.vllm_args import value_of
from pytest_kvcache.preflight.check import Check, Finding, run
from pytest_kvcache.preflight.others import Others
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.telemetry.allotment import Allotment, allotment, dealt
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
#: Two names of one option of vLLM, and its default (0.32).
_UTILIZATION = ("--gpu-memory-utilization", "--device-memory-utilization")
_DEFAULT_UTILIZATION = 0.92


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

    def is_full(self, share: float) -> bool:
        """Whether less of its memory is free than this share; one cut into instances does not say."""
        if self.mig or not self.memory_mib or (self.used_mib or 0) <= _IDLE_MIB:
            return False
        return self.memory_mib - (self.used_mib or 0) < share * self.memory_mib

    def describe(self) -> str:
        """Return one line."""
        memory = f"{(self.memory_mib or 0) / 1024:.0f} GiB"
        clocks = f"{self.clock_mhz or 0:.0f} of {self.most_clock_mhz or 0:.0f} MHz"
        ecc = "ECC" if self.ecc else "no ECC"
        return f"{self.index}: {self.name}, {memory}, {clocks}, {self.power_w or 0:.0f} W, {ecc}"


def checks(profile: Profile, *, offloads: bool, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Return what to look at on the machine for a profile.

    Args:
        profile: To be served.
        offloads: Whether a tier with LMCache is meant.
        environ: Of the caller: what it allots, and what is withheld from processes.
    """
    l1 = l1_bytes(profile) if offloads else 0
    shared = l1 if profile.lmcache_mode == "mp" else 0
    memory = l1 + profile.servers * profile.ranks * _SERVER_BYTES
    return [
        Check("GPUs", lambda: gpus_of(profile, environ)),
        Check("environment", lambda: surroundings(environ)),
        Check("profile", lambda: of_profile(profile, offloads=offloads)),
        Check("CPU governor", governor),
        Check("memory", lambda: free_memory(memory)),
        Check("open files", open_files),
        Check("shared memory", lambda: shm(shared)),
        Check("ports", ports),
    ]


def blocking(profile: Profile, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return why no pair of a profile should be booted on this machine; empty where nothing speaks against.

    Raises:
        ConfigError: The GPUs that the caller may use are too few, or of the wrong kind.
    """
    dealt(allotment(environ), servers=profile.servers, each=profile.gpus_per_server)
    result = run("machine", Check("GPUs", lambda: gpus_of(profile, environ)))
    finding = result.finding
    return (
        [f"GPUs: {finding.found}" + (f"; {finding.todo}" if finding.todo else "")] if finding.status == "fail" else []
    )


def l1_bytes(profile: Profile) -> int:
    """Return the RAM that LMCache takes for L1 on all servers.

    Inside vLLM each rank pins `max_local_cpu_size` (GiB) for itself (LMCache 0.4.1 to 0.5.6, `LocalCPUBackend`); a server
    beside vLLM takes its `--l1-size-gb` (GiB) once for all ranks.
    """
    each = profile.ranks if profile.lmcache_mode == "in-process" else 1
    return int(profile.servers * each * profile.l1_size_gb * _GIB)


def gpus_of(profile: Profile, environ: Mapping[str, str]) -> Finding:
    """Look at the GPUs that the servers of a profile will be given."""
    share = None
    if value_of(profile.vllm_args, "--kv-cache-memory-bytes") is None:
        words = [value_of(profile.vllm_args, name) for name in _UTILIZATION]
        share = next((found for word in words if word and (found := _number(word)) is not None), _DEFAULT_UTILIZATION)
    return gpus(profile.servers * profile.gpus_per_server, allowed=allotment(environ), share=share)


def surroundings(environ: Mapping[str, str]) -> Finding:
    """Look at settings of vLLM and LMCache that the caller has and no process of a run will get."""
    names = environment.overriding(environ)
    if names:
        return Finding("warn", f"withheld: {', '.join(names)}", "set what a run needs of them in the profile's env")
    return Finding("pass", "no setting of vLLM or LMCache is in it")


def of_profile(profile: Profile, *, offloads: bool) -> Finding:
    """Look at what of the profile may go wrong."""
    found = cautions(profile, offloads=offloads)
    return Finding("warn", "; ".join(found)) if found else Finding("pass", f"{profile.ranks} workers a server")


def parse_gpus(text: str) -> list[Gpu]:
    """Return the GPUs in the answer to `QUERY`."""
    return [_gpu(row) for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == len(_FIELDS)]


def gpus(
    needed: int,
    *,
    query: Callable[[], str] | None = None,
    allowed: Allotment | None = None,
    share: float | None = None,
    others: Others | None = None,
) -> Finding:
    """Look at number, memory in use, ECC, MIG and power limit of the GPUs that servers will be given.

    Args:
        needed: By all servers of the profile; 0 serves on the CPU.
        query: Returns the answer to `QUERY`.
        allowed: What the caller may use; all that are here where nobody says.
        share: Of a GPU's memory that must be free when vLLM starts (`--gpu-memory-utilization`), None where none must.
        others: Says which GPU has which name, and who is on it.
    """
    if needed == 0:
        return Finding("pass", "none needed")
    todo = "take a profile with fewer servers, or another machine"
    if allowed is not None and len(allowed.devices) < needed:
        return Finding("fail", f"{needed} needed, {allowed}", f"ask for {needed} GPUs, or {todo}")
    if query is None and shutil.which(QUERY[0]) is None:
        known = models()
        if len(known) >= needed:
            return Finding("warn", f"{', '.join(known)}; nothing to ask about them", "install nvidia-smi")
        return Finding(
            "fail", f"{len(known)} of {needed}", "take a profile with gpus_per_server = 0, or another machine"
        )
    here = parse_gpus((query or _ask)())
    used = here[:needed]
    others = others or Others()
    if allowed is not None:
        wanted = allowed.devices[:needed]
        numbers = [others.number_of(name) for name in wanted]
        strange = [name for name, number in zip(wanted, numbers, strict=True) if number not in {g.index for g in here}]
        if strange:
            shown = "; ".join(gpu.describe() for gpu in here) or "none"
            return Finding("fail", f"no GPU {', '.join(strange)} ({allowed.said}); here: {shown}", todo)
        used = [gpu for gpu in here if gpu.index in numbers]
    text = "; ".join(gpu.describe() for gpu in used) or "none"
    if used:
        text += f"; driver {used[0].driver}"
    if allowed is None and len(used) < needed:
        return Finding("fail", f"{len(used)} of {needed}: {text}", todo)
    faults = [fault for gpu in used for fault in _faults(gpu, others)]
    full = [gpu for gpu in used if share is not None and gpu.is_full(share)]
    if full:
        return Finding(
            "fail",
            f"{text}; {'; '.join(faults)}",
            f"vLLM starts where {share:.0%} of the memory is free: end what is on it, or take other GPUs by "
            "CUDA_VISIBLE_DEVICES",
        )
    broken = any(gpu.uncorrected for gpu in used)
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


def _faults(gpu: Gpu, others: Others) -> list[str]:
    found = []
    if gpu.uncorrected:
        found.append(f"GPU {gpu.index} has {gpu.uncorrected:.0f} uncorrected memory errors")
    if gpu.mig:
        found.append(f"GPU {gpu.index} is cut into MIG instances")
    if gpu.power_w and gpu.default_power_w and gpu.power_w < gpu.default_power_w:
        found.append(f"GPU {gpu.index} is limited to {gpu.power_w:.0f} of {gpu.default_power_w:.0f} W")
    if (gpu.used_mib or 0) > _IDLE_MIB:
        who = others.on(gpu.index)
        found.append(f"GPU {gpu.index} has {gpu.used_mib:.0f} MiB in use by others" + (f": {who}" if who else ""))
    return found
