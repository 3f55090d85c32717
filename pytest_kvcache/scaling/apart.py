"""Does a piece of work in a process of its own, and says what it took: time, processor time, memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Took(Generic[Found]):
    """What a piece of work brought and took.

    Args:
        found: What it returned.
        wall_s: How long it took.
        cpu_s: Processor time, that of the processes that it started and waited for included.
        peak_bytes: By how much the memory of its process grew at most.
    """

    found: Found
    wall_s: float
    cpu_s: float
    peak_bytes: int


def apart(work: Callable[Given, Found], *args: Given.args, **more: Given.kwargs) -> Took[Found]:
    """Do a piece of work in a fresh process.

    Args:
        work: A function of a module.
        args: Its arguments.
        more: Its named arguments.

    Raises:
        Exception: Whatever the work raised.
        concurrent.futures.process.BrokenProcessPool: Its process was killed, as for want of memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_timed, work, args, more).result()


def _timed(work: Callable[..., Found], args: tuple[object, ...], more: dict[str, object]) -> Took[Found]:
    before_bytes, before_s, began_s = _memory("VmRSS"), _cpu_s(), time.monotonic()
    found = work(*args, **more)
    return Took(found, time.monotonic() - began_s, _cpu_s() - before_s, max(0, _memory("VmHWM") - before_bytes))


def _cpu_s() -> float:
    usages = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
