"""A replay of `libnvidia-ml.so.1`: C functions that fill the caller's structures from a table, under nvidia-ml-py.

The functions are C callbacks, so that nvidia-ml-py passes pointers as it does to the real library, and what is written
there are the bytes of nvml.h's structures (packed here, not taken from nvidia-ml-py).

As a program (`python nvml.py [hot] FILE [IDENTIFIER…]`) it is the sampler on two healthy GPUs, or on two hot ones.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

from pytest_kvcache.telemetry.gpu import sampler

#: nvmlReturn_t.
OK, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, TIMEOUT, NO_FUNCTION, LOST, UNKNOWN = 0, 3, 4, 6, 10, 13, 15, 999
INSUFFICIENT_SIZE = 7
NO_INSTANCE = 0xFFFFFFFF
_P, _U, _L = ctypes.c_void_p, ctypes.c_uint, ctypes.c_ulonglong


@dataclass
class Board:
    """One GPU, or one MIG instance of `parent`.

    Args:
        uuid: As NVML says it.
        name: The model.
        values: By the name of the C function without `nvmlDeviceGet`; a list is replayed, its last value repeated. An
            `int` in an `Answer` is a return value in place of an answer.
        parent: The GPU that an instance is a part of.
        instance: Its GPU instance and compute instance.
    """

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    values: dict[str, Any] = field(default_factory=dict)
    parent: Board | None = None
    instance: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Failed:
    """In place of a value: what the function returns."""

    code: int


@dataclass(frozen=True)
class Event:
    """One event of an event set."""

    board: Board
    data: int
    kind: int = 0x8
    instance: int = NO_INSTANCE


#: What a healthy GPU at work says.
HEALTHY: dict[str, Any] = {
    "UtilizationRates": (97, 41),
    "MemoryInfo": (85520809984, 10000000000, 75520809984),
    "ClockInfo": {1: 1980, 2: 2619},
    "PowerUsage": 612_345,
    "EnforcedPowerLimit": 700_000,
    "TemperatureV": 63,
    "CurrentClocksEventReasons": 0,
    "TotalEccErrors": {0: 5, 1: 0},
}


class Replay:
    """The library, as `pynvml.nvmlLib`: an attribute is a C function.

    Args:
        boards: Whole GPUs in the order of the PCI bus, instances anywhere.
        events: What `nvmlEventSetWait` gives, one a call; a return value in place of an event; then timeouts.
        without: Functions that this driver does not have.
        init: What `nvmlInitWithFlags` returns.
    """

    def __init__(
        self,
        boards: Sequence[Board],
        *,
        events: Sequence[Event | Failed] = (),
        without: Sequence[str] = (),
        init: int = OK,
    ) -> None:
        self.boards = list(boards)
        self.events = list(events)
        self.registered: list[tuple[str, int]] = []
        self.ended = 0
        self._without, self._init = set(without), init
        self._calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in self._without:
            raise AttributeError(name)
        types, call = self._function(name)
        made = ctypes.CFUNCTYPE(ctypes.c_int, *types)(call)
        setattr(self, name, made)
        return made

    def _function(self, name: str) -> tuple[tuple[Any, ...], Callable[..., int]]:
        numbers = {
            "PowerUsage": "<I", "EnforcedPowerLimit": "<I", "CurrentClocksEventReasons": "<Q",
            "CurrentClocksThrottleReasons": "<Q", "UtilizationRates": "<II", "MemoryInfo": "<QQQ",
        }  # fmt: skip
        what = name.removeprefix("nvmlDeviceGet")
        if name.startswith("nvmlDeviceGet") and what in numbers:
            return (_P, _P), lambda handle, out: self._put(handle, what, out, numbers[what])
        known: dict[str, tuple[tuple[Any, ...], Callable[..., int]]] = {
            "nvmlInitWithFlags": ((_U,), lambda _flags: self._init),
            "nvmlShutdown": ((), self._shutdown),
            "nvmlDeviceGetCount_v2": ((_P,), lambda out: _write(out, "<I", len(self._wholes()))),
            "nvmlDeviceGetHandleByIndex_v2": ((_U, _P), self._by_index),
            "nvmlDeviceGetHandleByUUID": ((ctypes.c_char_p, _P), self._by_uuid),
            "nvmlDeviceGetUUID": ((_P, _P, _U), lambda handle, out, _size: _text(out, self._board(handle).uuid)),
            "nvmlDeviceGetName": ((_P, _P, _U), lambda handle, out, _size: _text(out, self._board(handle).name)),
            "nvmlDeviceGetIndex": ((_P, _P), self._index),
            "nvmlDeviceIsMigDeviceHandle": (
                (_P, _P),
                lambda handle, out: _write(out, "<I", int(self._board(handle).parent is not None)),
            ),
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": ((_P, _P), self._whole),
            "nvmlDeviceGetMaxMigDeviceCount": ((_P, _P), lambda _handle, out: _write(out, "<I", 7)),
            "nvmlDeviceGetMigDeviceHandleByIndex": ((_P, _U, _P), self._instance),
            "nvmlDeviceGetGpuInstanceId": (
                (_P, _P),
                lambda handle, out: _write(out, "<I", self._board(handle).instance[0]),
            ),
            "nvmlDeviceGetComputeInstanceId": (
                (_P, _P),
                lambda handle, out: _write(out, "<I", self._board(handle).instance[1]),
            ),
            "nvmlDeviceGetClockInfo": (
                (_P, _U, _P),
                lambda handle, kind, out: self._put(handle, "ClockInfo", out, "<I", key=kind),
            ),
            "nvmlDeviceGetTotalEccErrors": (
                (_P, _U, _U, _P),
                lambda handle, kind, _counter, out: self._put(handle, "TotalEccErrors", out, "<Q", key=kind),
            ),
            "nvmlDeviceGetTemperature": (
                (_P, _U, _P),
                lambda handle, _sensor, out: self._put(handle, "Temperature", out, "<I"),
            ),
            # nvmlTemperature_t: version, sensor, temperature.
            "nvmlDeviceGetTemperatureV": (
                (_P, _P),
                lambda handle, out: self._put(handle, "TemperatureV", out + 8, "<i"),
            ),
            "nvmlDeviceGetComputeRunningProcesses_v3": ((_P, _P, _P), self._processes),
            "nvmlEventSetCreate": ((_P,), lambda out: _write(out, "<Q", 0xE0)),
            "nvmlDeviceRegisterEvents": ((_P, _L, _P), self._register),
            "nvmlEventSetWait_v2": ((_P, _P, _U), self._wait),
            "nvmlEventSetFree": ((_P,), lambda _events: OK),
        }
        if name not in known:
            raise AttributeError(name)
        return known[name]

    def _board(self, handle: int) -> Board:
        return self.boards[handle // 0x100 - 1]

    def _handle(self, board: Board) -> int:
        return 0x100 * (self.boards.index(board) + 1)

    def _wholes(self) -> list[Board]:
        return [board for board in self.boards if board.parent is None]

    def _put(self, handle: int, what: str, out: int, form: str, *, key: int | None = None) -> int:
        board = self._board(handle)
        value = board.values.get(what, Failed(NOT_SUPPORTED))
        value = value if key is None or not isinstance(value, dict) else value[key]
        if isinstance(value, list):
            count = self._calls.get(f"{handle} {what} {key}", 0)
            self._calls[f"{handle} {what} {key}"] = count + 1
            value = value[min(count, len(value) - 1)]
        if isinstance(value, Failed):
            return value.code
        return _write(out, form, *(value if isinstance(value, tuple) else (value,)))

    def _processes(self, handle: int, count: int, out: int | None) -> int:
        """Fill an array of nvmlProcessInfo_t: pid, usedGpuMemory, gpuInstanceId, computeInstanceId."""
        listed = self._board(handle).values.get("ComputeRunningProcesses", Failed(NOT_SUPPORTED))
        if isinstance(listed, Failed):
            return listed.code
        room = ctypes.c_uint.from_address(count).value
        _write(count, "<I", len(listed))
        if len(listed) > room:
            return INSUFFICIENT_SIZE
        for number, (pid, memory) in enumerate(listed):
            _write((out or 0) + 24 * number, "<IxxxxQII", pid, memory, NO_INSTANCE, NO_INSTANCE)
        return OK

    def _shutdown(self) -> int:
        self.ended += 1
        return OK

    def _by_index(self, index: int, out: int) -> int:
        wholes = self._wholes()
        return _write(out, "<Q", self._handle(wholes[index])) if index < len(wholes) else NOT_FOUND

    def _by_uuid(self, uuid: bytes, out: int) -> int:
        found = next((board for board in self.boards if board.uuid.encode() == uuid), None)
        return _write(out, "<Q", self._handle(found)) if found else NOT_FOUND

    def _index(self, handle: int, out: int) -> int:
        board = self._board(handle)
        return _write(out, "<I", self._wholes().index(board)) if board.parent is None else NOT_SUPPORTED

    def _whole(self, handle: int, out: int) -> int:
        parent = self._board(handle).parent
        return _write(out, "<Q", self._handle(parent)) if parent else NOT_SUPPORTED

    def _instance(self, handle: int, index: int, out: int) -> int:
        of = [board for board in self.boards if board.parent is self._board(handle)]
        return _write(out, "<Q", self._handle(of[index])) if index < len(of) else NOT_FOUND

    def _register(self, handle: int, kinds: int, _events: int) -> int:
        answer = self._board(handle).values.get("RegisterEvents", OK)
        if isinstance(answer, Failed):
            return answer.code
        self.registered.append((self._board(handle).uuid, kinds))
        return OK

    def _wait(self, _events: int, out: int, timeout_ms: int) -> int:
        if not self.events:
            time.sleep(timeout_ms / 1e3)
            return TIMEOUT
        event = self.events.pop(0)
        if isinstance(event, Failed):
            return event.code
        # nvmlEventData_t: device, eventType, eventData, gpuInstanceId, computeInstanceId.
        values = (self._handle(event.board), event.kind, event.data, event.instance, NO_INSTANCE)
        return _write(out, "<QQQII", *values)


def install(replay: Replay, set_attribute: Callable[[object, str, object], object] = setattr) -> Any:
    """Have nvidia-ml-py call `replay`; return the module."""
    set_attribute(pynvml, "nvmlLib", replay)
    set_attribute(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return pynvml


def _write(out: int, form: str, *values: int) -> int:
    data = struct.pack(form, *values)
    ctypes.memmove(out, data, len(data))
    return OK


def _text(out: int, text: str) -> int:
    data = text.encode() + b"\0"
    ctypes.memmove(out, data, len(data))
    return OK


if __name__ == "__main__":
    hot = sys.argv[1] == "hot"
    says = HEALTHY | ({"CurrentClocksEventReasons": 0x48, "ClockInfo": {1: 990, 2: 2619}} if hot else {})
    install(Replay([Board("GPU-0", values=says), Board("GPU-1", values=says)]))
    sys.exit(sampler.main(sys.argv[2 if hot else 1 :]))
