"""Which GPUs the caller may use: what a scheduler or a container runtime allotted, read as CUDA reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.errors import ConfigError

#: The first of these variables that is set counts: HIP reads CUDA's variable too.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
#: The variable by which NVIDIA's container runtime gives GPUs to a container: by number or name, `all`, or none.
RUNTIME = "NVIDIA_VISIBLE_DEVICES"
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class Allotment:
    """GPUs that the caller may use.

    Args:
        devices: The GPUs, as `CUDA_VISIBLE_DEVICES` names them: numbers, `GPU-…` (maybe abbreviated) or `MIG-…`.
        source: Where the allotment is written (`CUDA_VISIBLE_DEVICES=4,5`).
        shortfall: Why there are fewer GPUs than were written, "" where there are as many.
    """

    devices: tuple[str, ...]
    source: str
    shortfall: str = ""

    def __str__(self) -> str:
        """Return how many GPUs are allotted, by what, and why they are not more."""
        return f"{len(self.devices)} allotted by {self.source}" + (f" ({self.shortfall})" if self.shortfall else "")


def allotment(environ: Mapping[str, str]) -> Allotment | None:
    """Return the GPUs that an environment allots, None where it says nothing of them.

    `CUDA_VISIBLE_DEVICES` is read as CUDA and PyTorch do (`torch/cuda/__init__.py`, `_parse_visible_devices`): the list
    ends before the first entry that is no device, for instance -1; an entry that is there twice makes the list void.
    """
    for variable in VARIABLES:
        if variable in environ:
            text = environ[variable]
            devices, why = _visible(text)
            return Allotment(devices, f"{variable}={text}", why)
    runtime = environ.get(RUNTIME, "").strip().lower()
    # `void` is also set in a container whose GPUs came by CDI, so that no other runtime adds any: device nodes decide.
    if runtime == "none" or (runtime == "void" and not (in_container(environ) and device_nodes())):
        return Allotment((), f"{RUNTIME}={environ[RUNTIME]}")
    return None


def allotted(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the names of the GPUs that an environment allots, None where it says nothing of them."""
    found = allotment(environ)
    return None if found is None else found.devices


def dealt(allotted_: Allotment | None, *, servers: int, each: int) -> list[tuple[str, ...]]:
    """Return the GPUs of each server, dealt out in the order of the allotment, or of their numbers where there is none.

    Args:
        allotted_: GPUs that the caller may use; None where nothing allots any.
        servers: Number of servers.
        each: Number of GPUs of each server; 0 gives none.

    Raises:
        ConfigError: Too few GPUs are allotted, or a server would have several MIG instances.
    """
    needed = servers * each
    names = tuple(map(str, range(needed))) if allotted_ is None else allotted_.devices
    if len(names) < needed:
        raise ConfigError(
            f"{needed} GPUs are needed (servers = {servers}, gpus_per_server = {each}), {allotted_}",
            where="gpus_per_server",
            todo=f"ask for {needed} GPUs, or take a profile that needs fewer",
        )
    if each > 1 and any(name.startswith("MIG-") for name in names):
        raise ConfigError(
            f"a process sees one MIG instance, and gpus_per_server = {each}",
            where=allotted_.source if allotted_ else "gpus_per_server",
            todo="take gpus_per_server = 1, or whole GPUs",
        )
    return [names[server * each : (server + 1) * each] for server in range(servers)]


def in_container(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process seems to be in a container, where /proc shows all GPUs of the host, whoever has them."""
    return "KUBERNETES_SERVICE_HOST" in environ or any(mark.exists() for mark in _CONTAINER_MARKS)


def device_nodes() -> frozenset[int]:
    """Return the minor numbers of the NVIDIA GPUs that have a device node here."""
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in _DEVICES.glob("nvidia*"))
    return frozenset(int(match[1]) for match in found if match)


def _visible(text: str) -> tuple[tuple[str, ...], str]:
    """Return the devices that CUDA sees, and why they are fewer than were written."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    kind = next((prefix for prefix in ("GPU-", "MIG-") if words and words[0].startswith(prefix)), None)
    found: list[str] = []
    for word in words:
        name = word if kind else _number(word)
        if name is None or (kind is not None and not name.startswith(kind)):
            return tuple(found), "" if word == "-1" else f"the list ends before {word!r}, which is no device"
        if name in found:
            return (), f"{name} is there twice, which leaves no GPU at all"
        found.append(name)
    return tuple(found), ""


def _number(word: str) -> str | None:
    match = re.match(r"\+?(\d+)", word)
    return str(int(match[1])) if match else None
