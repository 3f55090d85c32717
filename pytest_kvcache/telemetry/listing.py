"""GPUs, their MIG instances and the processes on them, as `nvidia-smi` lists them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Lists GPUs and their MIG instances.
LISTING = ("nvidia-smi", "-L")
#: Lists which processes hold memory of which GPU.
APPS = ("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits")
_GPU = re.compile(r"GPU (\d+): (.+) \(UUID: (GPU-[^)]+)\)")
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True)
class Listed:
    """A GPU, or a MIG instance of one.

    Args:
        index: Number of the GPU.
        uuid: UUID of the GPU or instance.
        model: Model of the GPU.
        profile: Size of the instance (`1g.10gb`), "" for a whole GPU.
    """

    index: str
    uuid: str
    model: str
    profile: str = ""

    def is_named(self, name: str) -> bool:
        """Whether `name` in `CUDA_VISIBLE_DEVICES` means this device: by number, or by the beginning of its UUID."""
        return name == self.index and not self.profile if name.isdecimal() else self.uuid.startswith(name)


@dataclass(frozen=True)
class App:
    """A process on a GPU.

    Args:
        gpu: UUID of the GPU.
        pid: Process id, as this machine numbers it.
        name: Name of the program.
        memory_mib: GPU memory that the process holds; None where the driver does not say.
    """

    gpu: str
    pid: str
    name: str
    memory_mib: float | None

    def __str__(self) -> str:
        """Return name, pid and memory."""
        size = "" if self.memory_mib is None else f", {self.memory_mib:.0f} MiB"
        return f"{self.name} (pid {self.pid}{size})"


def listed(text: str) -> Iterator[Listed]:
    """Return what the output of `nvidia-smi -L` lists, instances after their GPU."""
    index = model = ""
    for line in text.splitlines():
        if gpu := _GPU.match(line):
            index, model = gpu[1], gpu[2]
            yield Listed(index, gpu[3], model)
        elif (instance := _MIG.match(line)) and index:
            yield Listed(index, instance[2], model, instance[1])


def apps(text: str) -> list[App]:
    """Return the processes in the answer to `APPS`."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == 4]
    return [App(gpu, pid, name, float(size) if size.isdecimal() else None) for gpu, pid, name, size in rows]
