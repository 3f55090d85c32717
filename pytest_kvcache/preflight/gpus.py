"""Checks of the GPUs that servers will be given: their number, who else uses them, and their state."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pytest_kvcache.check import Check, Finding, run
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.vllm_args import value_of
from pytest_kvcache.preflight.others import Others
from pytest_kvcache.telemetry.allotment import Allotment, allotment, dealt
from pytest_kvcache.telemetry.hardware import gpus as models

#: Fields that `nvidia-smi --query-gpu` (NVML) is asked for.
_FIELDS = (
    "index", "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "power.limit",
    "power.default_limit", "ecc.mode.current", "ecc.errors.uncorrected.volatile.total", "mig.mode.current",
)  # fmt: skip
QUERY = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
#: GPU memory (MiB) that a driver and a display may hold.
_IDLE_MIB = 1024
#: Two names of one option of vLLM, and its default (0.32).
_UTILIZATION = ("--gpu-memory-utilization", "--device-memory-utilization")
_DEFAULT_UTILIZATION = 0.92
_OTHERWISE = "take a profile that needs fewer, or another machine"


@dataclass(frozen=True)
class GpuState:
    """One NVIDIA GPU as `nvidia-smi` describes it; values are None where the GPU does not tell them.

    Args:
        index: Number of the GPU.
        name: Model of the GPU.
        driver: Version of the driver.
        memory_mib: Memory in all (MiB).
        used_mib: Memory in use by anybody (MiB).
        clock_mhz: Present clock of the multiprocessors (MHz).
        most_clock_mhz: Highest clock of the multiprocessors (MHz).
        power_w: Power limit (W).
        default_power_w: Power limit as delivered (W).
        ecc: Whether memory errors are corrected.
        uncorrected: Number of uncorrected memory errors since the driver was loaded.
        mig: Whether the GPU is cut into MIG instances.
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
        """Whether less than `share` of the memory is free; False for a GPU cut into instances, which does not tell."""
        if self.mig or not self.memory_mib or (self.used_mib or 0) <= _IDLE_MIB:
            return False
        return self.memory_mib - (self.used_mib or 0) < share * self.memory_mib

    def describe(self) -> str:
        """Return a line with model, memory, clocks, power limit and ECC."""
        memory = f"{(self.memory_mib or 0) / 1024:.0f} GiB"
        clocks = f"{self.clock_mhz or 0:.0f} of {self.most_clock_mhz or 0:.0f} MHz"
        ecc = "ECC" if self.ecc else "no ECC"
        return f"{self.index}: {self.name}, {memory}, {clocks}, {self.power_w or 0:.0f} W, {ecc}"


def blocking(profile: Profile, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return why no pair of a profile should be booted on this machine; empty where nothing speaks against a boot.

    Raises:
        ConfigError: The GPUs that the caller may use are too few, or of the wrong kind.
    """
    dealt(allotment(environ), servers=profile.servers, each=profile.gpus_per_server)
    result = run("machine", Check("GPUs", lambda: of_profile(profile, environ)))
    finding = result.finding
    return (
        [f"GPUs: {finding.found}" + (f"; {finding.todo}" if finding.todo else "")] if finding.status == "fail" else []
    )


def of_profile(profile: Profile, environ: Mapping[str, str]) -> Finding:
    """Look at the GPUs that the servers of a profile will be given."""
    share = None
    if value_of(profile.vllm_args, "--kv-cache-memory-bytes") is None:
        words = [value_of(profile.vllm_args, name) for name in _UTILIZATION]
        share = next((found for word in words if word and (found := _number(word)) is not None), _DEFAULT_UTILIZATION)
    return gpus(profile.servers * profile.gpus_per_server, allowed=allotment(environ), share=share)


def parse_gpus(text: str) -> list[GpuState]:
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
        needed: Number of GPUs for all servers of the profile; 0 for servers on the CPU.
        query: Returns the answer to `QUERY`.
        allowed: GPUs that the caller may use; None for all of the machine.
        share: Share of a GPU's memory that must be free when vLLM starts (`--gpu-memory-utilization`), None for none.
        others: Tells which GPU has which name, and which processes use it.
    """
    if needed == 0:
        return Finding("pass", "none needed")
    if allowed is not None and len(allowed.devices) < needed:
        return Finding("fail", f"{needed} needed, {allowed}", f"ask for {needed} GPUs, or {_OTHERWISE}")
    if query is None and shutil.which(QUERY[0]) is None:
        return _counted(needed)
    others = others or Others()
    used = given = parse_gpus((query or _ask)())
    if allowed is not None:
        numbers = {name: others.number_of(name) for name in allowed.devices[:needed]}
        used = [gpu for gpu in given if gpu.index in numbers.values()]
        strange = [name for name, number in numbers.items() if number not in {gpu.index for gpu in given}]
        if strange:
            return Finding(
                "fail", f"no GPU {', '.join(strange)} ({allowed.source}); here: {_described(given)}", _OTHERWISE
            )
    elif len(given) < needed:
        return Finding("fail", f"{len(given)} of {needed}: {_described(given)}", _OTHERWISE)
    return _state(used if allowed is not None else used[:needed], share, others)


def _counted(needed: int) -> Finding:
    """Return the finding where nothing but the models and the number of GPUs is known."""
    known = models()
    if len(known) >= needed:
        return Finding("warn", f"{', '.join(known)}; nothing to ask about them", "install nvidia-smi")
    return Finding("fail", f"{len(known)} of {needed}", "take a profile with gpus_per_server = 0, or another machine")


def _state(used: Sequence[GpuState], share: float | None, others: Others) -> Finding:
    faults = [fault for gpu in used for fault in _faults(gpu, others)]
    text = "; ".join([_described(used), *faults])
    if share is not None and any(gpu.is_full(share) for gpu in used):
        todo = f"vLLM starts where {share:.0%} of the memory is free (--gpu-memory-utilization): end what is on it, or "
        return Finding("fail", text, todo + "take other GPUs by CUDA_VISIBLE_DEVICES")
    if any(gpu.uncorrected for gpu in used):
        return Finding("fail", text, "see nvidia-smi -q")
    return Finding("warn", text, "see nvidia-smi -q") if faults else Finding("pass", text)


def _described(found: Sequence[GpuState]) -> str:
    text = "; ".join(gpu.describe() for gpu in found) or "none"
    return f"{text}; driver {found[0].driver}" if found else text


def _ask() -> str:
    done = subprocess.run(QUERY, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=30)
    if done.returncode != 0:
        raise OSError(f"nvidia-smi: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout


def _gpu(row: Sequence[str]) -> GpuState:
    values = dict(zip(_FIELDS, row, strict=True))
    number = {name: _number(text) for name, text in values.items()}
    return GpuState(
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


def _faults(gpu: GpuState, others: Others) -> list[str]:
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
