"""A line for each GPU of each boot."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_kvcache.campaign.gpus import BootGpus
from pytest_kvcache.telemetry.gpu.summary import GpuSummary

_GIB = 1 << 30


def gpu_lines(boots: Iterable[BootGpus]) -> list[str]:
    """Return what each GPU did over the loads of each boot, and what of the GPUs could not be looked at."""
    return [
        f"{boot.label}: {line}"
        for boot in boots
        for line in (*map(_line, boot.found.gpus), *(f"not looked at: {note}" for note in boot.found.notes))
    ]


def _line(gpu: GpuSummary) -> str:
    """Return the line of one GPU; what it does not say is left out."""
    parts = [f"busy in {gpu.busy} of {gpu.samples} samples"]
    if gpu.sm_clock_mhz is not None:
        parts.append(f"SM {gpu.sm_clock_mhz:.0f} MHz (median while busy; lowest {gpu.sm_clock_lowest_mhz})")
    if gpu.memory_clock_mhz is not None:
        parts.append(f"memory {gpu.memory_clock_mhz:.0f} MHz")
    if gpu.power_w is not None:
        parts.append(f"{gpu.power_w:.0f}{'' if gpu.power_limit_w is None else f' of {gpu.power_limit_w:.0f}'} W")
    if gpu.temperature_c is not None:
        parts.append(f"{gpu.temperature_c} °C at most")
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes is not None:
        parts.append(f"{gpu.memory_used_bytes / _GIB:.1f} of {gpu.memory_total_bytes / _GIB:.1f} GiB")
    if gpu.reasons:
        parts.append("clocks held by " + ", ".join(f"{n} {gpu.share(c):.0%}" for n, c in gpu.reasons.items()))
    if gpu.ecc_corrected is not None or gpu.ecc_uncorrected is not None:
        parts.append(f"ECC {gpu.ecc_corrected or 0} corrected, {gpu.ecc_uncorrected or 0} uncorrected")
    if gpu.xids:
        parts.append("XID " + ", ".join(map(str, gpu.xids)))
    if gpu.lost:
        parts.append(gpu.lost)
    return f"{gpu.gpu}: {', '.join(parts)}"
