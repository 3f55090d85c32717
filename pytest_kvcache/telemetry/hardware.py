"""What machine this is, in the few words that decide whether two results may be compared."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_kvcache.telemetry.allotment import allotted, device_nodes, in_container
from pytest_kvcache.telemetry.listing import LISTING, Listed, listed

_DRIVER = Path("/proc/driver/nvidia/gpus")


def gpus() -> list[str]:
    """Return the model of each NVIDIA or AMD GPU that is here, empty where there is none."""
    models = [each.model for each in _nvidia()]
    if models:
        return models
    amd = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
    return ["AMD GPU" for path in amd if path.read_text(encoding="utf-8").strip() not in {"", "0"}]


def usable_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the model of each GPU that the caller may use: of the GPUs that are here, those that are allotted."""
    names = allotted(environ)
    here = gpus()
    return here if names is None or not here else models_of(names)


def models_of(names: Sequence[str]) -> list[str]:
    """Return the models of GPUs by their names in `CUDA_VISIBLE_DEVICES`; GPUs that are not here are left out."""
    cards, here = _nvidia(), gpus()
    found = []
    for name in names:
        if name.isdecimal():
            found += here[int(name) : int(name) + 1]
        elif name.startswith("MIG-"):
            found += _instances(name)[:1]
        else:
            found += _by_uuid(name, cards)
    return found


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the UUID of each GPU or MIG instance, given its name as in `CUDA_VISIBLE_DEVICES`.

    A GPU whose UUID neither nvidia-smi nor the driver tells keeps the given name.
    """
    here = _listing()
    cards = [] if here else _nvidia()
    found = []
    for name in names:
        listed_ = next((each.uuid for each in here if each.is_named(name)), "")
        number = int(name) if name.isdecimal() else len(cards)
        by_driver = cards[number].uuid if number < len(cards) and "?" not in cards[number].uuid else ""
        found.append(listed_ or by_driver or name)
    return found


def hardware(names: Sequence[str] | None = None) -> dict[str, str]:
    """Return processor, cores that this process may use, memory and GPUs.

    Args:
        names: Names of the GPUs that servers use, as in `CUDA_VISIBLE_DEVICES`; by default all GPUs that are here.
    """
    used = gpus() if names is None else models_of(names)
    return {
        "cpu": _field(Path("/proc/cpuinfo").read_text(encoding="utf-8"), "model name") or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": str(round(psutil.virtual_memory().total / 2**30)),
        "gpus": ", ".join(used) or "none",
    }


@dataclass(frozen=True)
class _Card:
    model: str
    uuid: str


def _nvidia() -> list[_Card]:
    """Return the GPUs that the kernel driver shows, in the order of nvidia-smi, which is that of the bus."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(_DRIVER.glob("*/information"))]
    if in_container():
        here = device_nodes()
        texts = [text for text in texts if _field(text, "Device Minor") in {"", *map(str, here)}]
    return [_Card(_field(text, "Model") or "NVIDIA GPU", _field(text, "GPU UUID")) for text in texts]


def _by_uuid(name: str, cards: Sequence[_Card]) -> list[str]:
    """Return the model of the GPU whose UUID begins with `name`; of an idle GPU the driver shows question marks."""
    known = [each.model for each in cards if each.uuid.startswith(name)]
    hidden = sorted({each.model for each in cards if not each.uuid or "?" in each.uuid})
    return known[:1] or (hidden if len(hidden) == 1 else ["NVIDIA GPU"] if hidden else [])


def _instances(name: str) -> list[str]:
    """Return the model of a MIG instance, which begins with the model of its GPU."""
    here = _listing()
    if not here:
        return ["NVIDIA MIG instance"]
    return [f"{each.model} {each.profile}" for each in here if each.is_named(name) and each.profile]


def _listing() -> list[Listed]:
    """Return what nvidia-smi lists, an empty list where it is missing or does not answer."""
    if shutil.which(LISTING[0]) is None:
        return []
    try:
        done = subprocess.run(LISTING, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(listed(done.stdout))


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
