"""The process that samples GPUs: `python -m pytest_kvcache.telemetry.gpu.sampler FILE [IDENTIFIER…]`.

A process of its own and no thread of pytest's: a call into the driver of a GPU that has fallen off the bus may never
return, and would keep pytest's process from ending with it. It only appends lines, so that whatever ends it, or the
run, leaves what was sampled. It ends on SIGTERM, and by itself once the process that started it is gone.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_kvcache.runs import signals
from pytest_kvcache.telemetry.gpu.nvml import Nvml
from pytest_kvcache.telemetry.gpu.readings import Gpu, Sample, Users, Xid, line_of

PERIOD_S = 1.0
#: An event ends a wait; a signal does not, so that no wait is longer than this.
_SLICE_S = 0.2

Write = Callable[[Gpu | Sample | Xid | Users | str], object]


def main(argv: Sequence[str]) -> int:
    """Sample until told to end. What NVML cannot do is a note in the file, and no failure.

    Args:
        argv: The file; then the GPUs, all where none is named.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how its run ends it, whatever was ignored where that was started
    signals.handle((signal.SIGTERM, signal.SIGINT), lambda number, _: asked.append(number))
    parent = os.getppid()
    with Path(argv[0]).open("a", encoding="utf-8", buffering=1) as out:
        sample(
            _library,
            argv[1:] or None,
            write=lambda what: out.write(line_of(what) + "\n"),
            ended=lambda: bool(asked) or os.getppid() != parent,
        )
    return 0


def sample(
    library: Callable[[], Any],
    identifiers: Sequence[str] | None,
    *,
    write: Write,
    ended: Callable[[], bool],
    period_s: float = PERIOD_S,
) -> None:
    """Write the GPUs, then a sample of each in every period, and changes of who is on it and XID events as they come.

    Args:
        library: Returns the module `pynvml`.
        identifiers: See `Nvml`.
        write: Gets each thing that was read.
        ended: Whether to end.
        period_s: From sample to sample.
    """
    try:
        pynvml = library()
    except ImportError as error:
        write(f"no GPU telemetry: nvidia-ml-py cannot be imported ({error}); pip install nvidia-ml-py")
        return
    try:
        nvml = Nvml(pynvml, identifiers)
    except pynvml.NVMLError as error:
        write(f"no GPU telemetry: NVML: {error}")
        return
    said = 0
    known: dict[str, set[int]] = {}
    try:
        for gpu in nvml.gpus:
            write(gpu)
        due_s = time.monotonic()
        while not ended():
            for each in nvml.samples():
                write(each)
            for users in nvml.users():
                pids = {each.pid for each in users.processes}
                if known.get(users.uuid) != pids:
                    known[users.uuid] = pids
                    write(users)
            for note in nvml.notes[said:]:
                write(note)
            said = len(nvml.notes)
            if not nvml.gpus:
                return
            # Samples that a slow driver made late are left out, not made up for.
            due_s = max(due_s + period_s, time.monotonic())
            _listen(nvml, due_s, write=write, ended=ended)
    finally:
        nvml.close()


def _listen(nvml: Nvml, until_s: float, *, write: Write, ended: Callable[[], bool]) -> None:
    """Write XID events until `until_s` (CLOCK_MONOTONIC); look once even where that is over."""
    while True:
        for xid in nvml.wait(min(max(until_s - time.monotonic(), 0.0), _SLICE_S)):
            write(xid)
        if ended() or time.monotonic() >= until_s:
            return


def _library() -> Any:
    return importlib.import_module("pynvml")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
