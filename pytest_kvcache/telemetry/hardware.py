"""What machine this is, in the few words that decide whether two results may be compared."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def gpus() -> list[str]:
    """Return the model of each NVIDIA or AMD GPU that the kernel driver shows, empty where there is none."""
    nvidia = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [_field(path.read_text(encoding="utf-8"), "Model") or "NVIDIA GPU" for path in nvidia]
    if models:
        return models
    amd = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
    return ["AMD GPU" for path in amd if path.read_text(encoding="utf-8").strip() not in {"", "0"}]


def hardware() -> dict[str, str]:
    """Return processor, cores that this process may use, memory and GPUs."""
    return {
        "cpu": _field(Path("/proc/cpuinfo").read_text(encoding="utf-8"), "model name") or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": str(round(psutil.virtual_memory().total / 2**30)),
        "gpus": ", ".join(gpus()) or "none",
    }


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
