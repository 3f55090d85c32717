"""What a sampler wrote of the GPUs of a boot, as data: lines of JSON in, a table out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Gpu:
    """One GPU of a run, or one MIG instance.

    Args:
        identifier: As the servers were given it (`CUDA_VISIBLE_DEVICES`).
        uuid: As NVML has it; of the instance, where it is one.
        index: NVML's number, which is that of the PCI bus order and of `nvidia-smi`; None where it cannot be told.
        name: The model.
        instance: The GPU instance of MIG that it is, None where it is a whole GPU.
        node: The machine that it is in, "" for that of pytest.
    """

    identifier: str
    uuid: str
    index: int | None = None
    name: str = ""
    instance: int | None = None
    node: str = ""

    def __str__(self) -> str:
        """Its number or UUID, the model, and the node where it is in another machine."""
        known = f"GPU {self.uuid if self.index is None else self.index}"
        known += f" (MIG instance {self.instance})" if self.instance is not None else ""
        return f"{known} {self.name}".rstrip() + (f" of node {self.node}" if self.node else "")


@dataclass(frozen=True)
class Sample:
    """One GPU at one moment; None where the GPU does not say. Of a MIG instance, all but the memory is its GPU's.

    Args:
        monotonic_s: When it was read: CLOCK_MONOTONIC, by which requests are stamped.
        wall_s: The same (s since the epoch), by the clock of the GPU's machine.
        uuid: Which GPU.
        utilization_gpu_percent: Share of the last period (1/6 to 1 s) in which a kernel ran.
        utilization_memory_percent: Share of it in which memory was read or written.
        memory_used_bytes: By all processes.
        memory_total_bytes: In all.
        sm_clock_mhz: Of the multiprocessors.
        memory_clock_mhz: Of the memory.
        power_w: Drawn by the board.
        power_limit_w: That is enforced.
        temperature_c: Of the GPU.
        clock_reasons: Why clocks are not the highest, see `reasons`.
        ecc_corrected: Memory errors since the driver was loaded that were corrected.
        ecc_uncorrected: Those that were not.
        error: Why nothing could be read: the GPU is lost, or needs a reset.
    """

    monotonic_s: float
    wall_s: float
    uuid: str
    utilization_gpu_percent: int | None = None
    utilization_memory_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    clock_reasons: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Xid:
    """A critical error that the driver reported.

    Args:
        monotonic_s: When the sampler heard of it (CLOCK_MONOTONIC).
        uuid: Which GPU.
        number: The XID.
        instance: The GPU instance of MIG that it is about, None where it is the whole GPU.
    """

    monotonic_s: float
    uuid: str
    number: int
    instance: int | None = None


@dataclass(frozen=True)
class GpuProcess:
    """A process with a context on a GPU.

    Args:
        pid: Its number, as the driver has it.
        name: Of its program, "" where no process has that number here: it has ended, or is in another container.
        session_id: The number of its session's leader, None where there is no such process here.
        memory_bytes: Of the GPU's memory that it has, None where the driver does not say.
    """

    pid: int
    name: str = ""
    session_id: int | None = None
    memory_bytes: int | None = None

    def __str__(self) -> str:
        """Number, name and memory."""
        memory = "" if self.memory_bytes is None else f" ({self.memory_bytes / 2**30:.1f} GiB)"
        return f"{self.pid} {self.name}".rstrip() + memory


@dataclass(frozen=True)
class Users:
    """Who was on a GPU from a moment on, until the next such line of that GPU.

    Args:
        monotonic_s: The moment (CLOCK_MONOTONIC).
        uuid: Which GPU.
        processes: Those that compute there.
    """

    monotonic_s: float
    uuid: str
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class Readings:
    """All that is known of the GPUs of a boot.

    Args:
        gpus: Those of the run that NVML knows.
        samples: In the order of time.
        xids: Errors of the driver in the order of time.
        notes: What could not be looked at, and why.
        users: Who was on them, in the order of time.
    """

    gpus: tuple[Gpu, ...] = ()
    samples: tuple[Sample, ...] = ()
    xids: tuple[Xid, ...] = ()
    notes: tuple[str, ...] = ()
    users: tuple[Users, ...] = ()

    def with_notes(self, *notes: str) -> Readings:
        """Return the same with more that could not be looked at."""
        return replace(self, notes=(*self.notes, *notes))

    def of_node(self, node: str, ahead_s: float) -> Readings:
        """Return what was read on another machine, with its name, and with times of this machine's clock.

        Args:
            node: Name of the machine.
            ahead_s: Its CLOCK_MONOTONIC less this one's.
        """
        return Readings(
            tuple(replace(each, node=node) for each in self.gpus),
            tuple(replace(each, monotonic_s=each.monotonic_s - ahead_s) for each in self.samples),
            tuple(replace(each, monotonic_s=each.monotonic_s - ahead_s) for each in self.xids),
            tuple(f"node {node}: {each}" for each in self.notes),
            tuple(replace(each, monotonic_s=each.monotonic_s - ahead_s) for each in self.users),
        )

    def __or__(self, other: Readings) -> Readings:
        """Return both together."""
        return Readings(
            self.gpus + other.gpus,
            self.samples + other.samples,
            self.xids + other.xids,
            self.notes + other.notes,
            self.users + other.users,
        )


@dataclass
class _Parts:
    gpu: list[Gpu] = field(default_factory=list)
    sample: list[Sample] = field(default_factory=list)
    xid: list[Xid] = field(default_factory=list)
    note: list[str] = field(default_factory=list)
    users: list[Users] = field(default_factory=list)


def line_of(what: Gpu | Sample | Xid | Users | str) -> str:
    """Return the line of a file for one thing that was read; a text is a note."""
    kind = "note" if isinstance(what, str) else type(what).__name__.lower()
    return json.dumps({kind: what if isinstance(what, str) else asdict(what)}, separators=(",", ":"))


def read(path: Path) -> Readings:
    """Return what is in a sampler's file so far; a line that is not whole is left out."""
    if not path.exists():
        return Readings()
    parts = _Parts()
    for line in path.read_text(encoding="utf-8").splitlines():
        # The last line may not be whole yet, or never was: a sampler that was killed, a disk that was full.
        with contextlib.suppress(ValueError, TypeError):
            _take(json.loads(line), parts)
    return Readings(tuple(parts.gpu), tuple(parts.sample), tuple(parts.xid), tuple(parts.note), tuple(parts.users))


def _take(data: Any, parts: _Parts) -> None:
    if not isinstance(data, dict):
        return
    for kind, value in data.items():
        if kind == "gpu":
            parts.gpu.append(Gpu(**value))
        elif kind == "sample":
            parts.sample.append(Sample(**value))
        elif kind == "xid":
            parts.xid.append(Xid(**value))
        elif kind == "users":
            there = tuple(GpuProcess(**each) for each in value["processes"])
            parts.users.append(Users(value["monotonic_s"], value["uuid"], there))
        elif kind == "note":
            parts.note.append(value)


@dataclass(frozen=True)
class Span:
    """When a load ran.

    Args:
        context_tokens: Which one.
        start_s: When its clock started (CLOCK_MONOTONIC): zero of the times in `requests.parquet`.
        end_s: When its last answer was there.
    """

    context_tokens: int
    start_s: float
    end_s: float

    def has(self, monotonic_s: float) -> bool:
        """Return whether a moment is in it."""
        return self.start_s <= monotonic_s <= self.end_s


def to_frame(readings: Readings, spans: Iterable[Span]) -> pd.DataFrame:
    """Return the table of `gpus.parquet`, a row a sample and GPU.

    Beside the fields of `Sample`: `node`, `identifier`, `gpu_index`, `gpu_name` and `mig_instance` of the GPU; `xids`,
    those that came since its sample before; and of samples within a load `context_tokens` and `since_start_s`, which
    is the clock of that load's `requests.parquet`.
    """
    import pandas as pd  # noqa: PLC0415 - the sampler reads this module too, and needs no table

    loads = list(spans)
    gpus = {gpu.uuid: gpu for gpu in readings.gpus}
    last: dict[str, float] = {}
    rows = []
    for sample in readings.samples:
        gpu = gpus.get(sample.uuid, Gpu("", sample.uuid))
        load = next((each for each in loads if each.has(sample.monotonic_s)), None)
        rows.append(
            asdict(sample)
            | {
                "node": gpu.node,
                "identifier": gpu.identifier,
                "gpu_index": gpu.index,
                "gpu_name": gpu.name,
                "mig_instance": gpu.instance,
                "xids": _between(readings.xids, sample, last.get(sample.uuid, float("-inf"))),
                "context_tokens": load.context_tokens if load else None,
                "since_start_s": sample.monotonic_s - load.start_s if load else None,
            }
        )
        last[sample.uuid] = sample.monotonic_s
    return pd.DataFrame(rows, columns=list(_TYPES)).astype({k: t for k, t in _TYPES.items() if t != "object"})


def _between(xids: Sequence[Xid], sample: Sample, after_s: float) -> list[int]:
    return [x.number for x in xids if x.uuid == sample.uuid and after_s < x.monotonic_s <= sample.monotonic_s]


_TEXTS = frozenset({"uuid", "error"})
_TYPES = {
    each.name: "string" if each.name in _TEXTS else "float64" if each.name.endswith(("_s", "_w")) else "Int64"
    for each in fields(Sample)
} | {
    "clock_reasons": "UInt64",  # bit 63 has a meaning
    "node": "string",
    "identifier": "string",
    "gpu_index": "Int64",
    "gpu_name": "string",
    "mig_instance": "Int64",
    "xids": "object",
    "context_tokens": "Int64",
    "since_start_s": "float64",
}
