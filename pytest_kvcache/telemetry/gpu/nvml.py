"""NVML through nvidia-ml-py: which GPUs are those of a run, what they say now, and which XID events came.

A value that a GPU does not have (a GeForce's ECC, the utilization of a MIG instance) is missing, never an error. Names
of functions and structures are those of NVML's API reference; where one was renamed, the new one is asked first.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.telemetry.gpu.readings import Gpu, GpuProcess, Sample, Users, Xid

#: Return values of NVML (nvml.h, nvmlReturn_t).
_NOT_SUPPORTED, _TIMEOUT, _NO_FUNCTION, _LOST, _RESET_REQUIRED = 3, 10, 13, 15, 16
_GONE = {_LOST: "GPU is lost", _RESET_REQUIRED: "GPU requires a reset"}
#: Instance of an event that is about a whole GPU.
_NO_INSTANCE = 0xFFFFFFFF
#: Enumerations of nvml.h: nvmlClockType_t, nvmlTemperatureSensors_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t.
_CLOCK_SM, _CLOCK_MEM, _SENSOR_GPU, _CORRECTED, _UNCORRECTED, _VOLATILE = 1, 2, 0, 0, 1, 0
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
#: nvmlEventTypeXidCriticalError.
_XID = 0x8


@dataclass(frozen=True)
class _Device:
    """A GPU and its handles; `whole` is the GPU that a MIG instance is a part of, else the same."""

    gpu: Gpu
    handle: Any
    whole: Any


class Nvml:
    """NVML, initialized, for the GPUs of one run. To be closed.

    Args:
        library: The module `pynvml` of nvidia-ml-py.
        identifiers: The GPUs as `CUDA_VISIBLE_DEVICES` has them: numbers in PCI bus order, UUIDs of GPUs or MIG
            instances (or what they begin with), `MIG-GPU-UUID/GI/CI`. None for all GPUs.

    Attributes:
        notes: What cannot be looked at, and why; each is said once.

    Raises:
        Exception: The library's own `NVMLError`: there is no driver, or it does not fit its library.
    """

    def __init__(self, library: Any, identifiers: Sequence[str] | None) -> None:
        self._lib = library
        self.notes: list[str] = []
        self._events: Any = None
        library.nvmlInit()
        wanted = identifiers if identifiers is not None else [str(n) for n in range(library.nvmlDeviceGetCount())]
        found = {device.gpu.uuid: device for name in wanted if (device := self._find(name)) is not None}
        self._devices = list(found.values())
        self._listen()

    @property
    def gpus(self) -> list[Gpu]:
        """The GPUs that were found, each once."""
        return [device.gpu for device in self._devices]

    def close(self) -> None:
        """Let go of NVML."""
        with contextlib.suppress(self._lib.NVMLError):
            if self._events is not None:
                self._lib.nvmlEventSetFree(self._events)
            self._lib.nvmlShutdown()

    def samples(self) -> list[Sample]:
        """Return what each GPU says now."""
        return [self._sample(device) for device in self._devices]

    def users(self) -> list[Users]:
        """Return who computes on each GPU now, of those that say it."""
        found = []
        for device in self._devices:
            with contextlib.suppress(self._lib.NVMLError):  # it is gone, which `samples` has noted
                asking = functools.partial(self._lib.nvmlDeviceGetComputeRunningProcesses, device.handle)
                listed = self._ask(device, "processes", asking)
                if listed is not None:
                    there = sorted((_process(each) for each in listed), key=lambda each: each.pid)
                    found.append(Users(time.monotonic(), device.gpu.uuid, tuple(there)))
        return found

    def wait(self, seconds: float) -> list[Xid]:
        """Return the XID events that come within `seconds`; the first ends the wait."""
        if self._events is None:
            time.sleep(seconds)
            return []
        try:
            event = self._lib.nvmlEventSetWait(self._events, max(1, int(seconds * 1e3)))
        except self._lib.NVMLError as error:
            if error.value != _TIMEOUT:
                self._note(f"XID events are heard no more: {error}")
                self._events = None
            return []
        if not event.eventType & _XID:
            return []
        about = None if event.gpuInstanceId == _NO_INSTANCE else int(event.gpuInstanceId)
        now, where = time.monotonic(), _address(event.device)
        return [
            Xid(now, device.gpu.uuid, int(event.eventData), about)
            for device in self._devices
            if _address(device.whole) == where
        ]

    def _sample(self, device: _Device) -> Sample:
        lib, handle = self._lib, device.whole
        sample: dict[str, Any] = {"monotonic_s": time.monotonic(), "wall_s": time.time(), "uuid": device.gpu.uuid}
        used: Any = None
        try:
            rates = self._ask(device, "utilization", lambda: lib.nvmlDeviceGetUtilizationRates(handle))
            used = self._ask(device, "memory", lambda: lib.nvmlDeviceGetMemoryInfo(device.handle))
            sample |= {
                "utilization_gpu_percent": None if rates is None else int(rates.gpu),
                "utilization_memory_percent": None if rates is None else int(rates.memory),
                "memory_used_bytes": None if used is None else int(used.used),
                "memory_total_bytes": None if used is None else int(used.total),
                "sm_clock_mhz": self._ask(device, "SM clock", lambda: lib.nvmlDeviceGetClockInfo(handle, _CLOCK_SM)),
                "memory_clock_mhz": self._ask(
                    device, "memory clock", lambda: lib.nvmlDeviceGetClockInfo(handle, _CLOCK_MEM)
                ),
                "power_w": _watts(self._ask(device, "power", lambda: lib.nvmlDeviceGetPowerUsage(handle))),
                "power_limit_w": _watts(
                    self._ask(device, "power limit", lambda: lib.nvmlDeviceGetEnforcedPowerLimit(handle))
                ),
                "temperature_c": self._ask(
                    device,
                    "temperature",
                    *self._either(("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"), handle, _SENSOR_GPU),
                ),
                "clock_reasons": self._ask(
                    device,
                    "clock event reasons",
                    *self._either(_REASONS, handle),
                ),
                "ecc_corrected": self._ask(
                    device, "ECC", lambda: lib.nvmlDeviceGetTotalEccErrors(handle, _CORRECTED, _VOLATILE)
                ),
                "ecc_uncorrected": self._ask(
                    device, "ECC", lambda: lib.nvmlDeviceGetTotalEccErrors(handle, _UNCORRECTED, _VOLATILE)
                ),
            }
        except lib.NVMLError as error:
            sample["error"] = _GONE[error.value]
            self._note(f"{device.gpu}: {_GONE[error.value]}")
        return Sample(**sample)

    def _ask(self, device: _Device, what: str, *ways: Callable[[], Any]) -> Any:
        """Return the first answer, None where there is none.

        Raises:
            NVMLError: The GPU is gone.
        """
        for way in ways:
            try:
                return way()
            except self._lib.NVMLError as error:
                if error.value in _GONE:
                    raise
                if error.value not in {_NOT_SUPPORTED, _NO_FUNCTION}:
                    self._note(f"{device.gpu}: {what}: {error}")
        return None

    def _either(self, names: Sequence[str], *arguments: Any) -> list[Callable[[], Any]]:
        """Return calls of those of the named functions that this version of the library has."""
        found = [getattr(self._lib, name) for name in names if hasattr(self._lib, name)]
        return [functools.partial(call, *arguments) for call in found]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _listen(self) -> None:
        """Have XID events reported, each GPU's once."""
        lib = self._lib
        whole = {_address(device.whole): device for device in self._devices}
        if not whole:
            return
        listening = False
        try:
            events = lib.nvmlEventSetCreate()
        except lib.NVMLError as error:
            self._note(f"XID events: {error}")
            return
        for device in whole.values():
            try:
                lib.nvmlDeviceRegisterEvents(device.whole, _XID, events)
                listening = True
            except lib.NVMLError as error:
                self._note(f"{device.gpu}: XID events: {error}")
        if listening:
            self._events = events
        else:
            lib.nvmlEventSetFree(events)

    def _find(self, identifier: str) -> _Device | None:
        """Return the GPU that `identifier` names; that there is none is noted."""
        lib, name = self._lib, identifier.strip()
        try:
            if name.isdigit():
                return self._device(name, lib.nvmlDeviceGetHandleByIndex(int(name)))
            every = self._instances() if name.startswith("MIG-") else self._wholes()
            handle = next((handle for known, handle in every if any(k.startswith(name) for k in known)), None)
            # An instance of another container's is not listed, but has a handle.
            return self._device(name, handle if handle is not None else lib.nvmlDeviceGetHandleByUUID(name))
        except lib.NVMLError as error:
            self._note(f"GPU {identifier!r} is not looked at: {error}")
            return None

    def _wholes(self) -> Iterable[tuple[list[str], Any]]:
        """Yield the UUID and handle of each GPU that can be read."""
        for index in range(self._lib.nvmlDeviceGetCount()):
            with contextlib.suppress(self._lib.NVMLError):
                handle = self._lib.nvmlDeviceGetHandleByIndex(index)
                yield [self._lib.nvmlDeviceGetUUID(handle)], handle

    def _instances(self) -> Iterable[tuple[list[str], Any]]:
        """Yield both names and the handle of each MIG instance."""
        lib = self._lib
        for (uuid,), whole in self._wholes():
            with contextlib.suppress(lib.NVMLError):
                for index in range(lib.nvmlDeviceGetMaxMigDeviceCount(whole)):
                    with contextlib.suppress(lib.NVMLError):
                        handle = lib.nvmlDeviceGetMigDeviceHandleByIndex(whole, index)
                        parts = lib.nvmlDeviceGetGpuInstanceId(handle), lib.nvmlDeviceGetComputeInstanceId(handle)
                        yield [lib.nvmlDeviceGetUUID(handle), f"MIG-{uuid}/{parts[0]}/{parts[1]}"], handle

    def _device(self, identifier: str, handle: Any) -> _Device:
        lib, whole, instance = self._lib, handle, None
        if self._ask_plain(lambda: lib.nvmlDeviceIsMigDeviceHandle(handle).value):
            whole = lib.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            instance = self._ask_plain(lambda: lib.nvmlDeviceGetGpuInstanceId(handle))
        gpu = Gpu(
            identifier=identifier,
            uuid=self._ask_plain(lambda: lib.nvmlDeviceGetUUID(handle)) or identifier,
            index=self._ask_plain(lambda: lib.nvmlDeviceGetIndex(whole)),
            name=self._ask_plain(lambda: lib.nvmlDeviceGetName(whole)) or "",
            instance=instance,
        )
        return _Device(gpu, handle, whole)

    def _ask_plain(self, way: Callable[[], Any]) -> Any:
        try:
            return way()
        except self._lib.NVMLError:
            return None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _process(listed: Any) -> GpuProcess:
    pid = int(listed.pid)
    name, session = "", None
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        session = os.getsid(pid)
    memory = listed.usedGpuMemory
    return GpuProcess(pid, name, session, None if memory is None else int(memory))


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3
