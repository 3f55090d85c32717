"""Peak memory of a run: that of its own process and of all that it started."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable

import psutil

_PERIOD_S = 2.0


class MemoryWatch:
    """Samples the proportional set size (PSS, shared pages counted once) of a run in the background.

    Args:
        processes: Returns the processes of the run, without this one.
    """

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kvcache-memory", daemon=True)
        self.peak_bytes = 0
        self._thread.start()

    def stop(self) -> None:
        """End the sampling."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self.peak_bytes = max(self.peak_bytes, total_pss([psutil.Process(), *self._processes()]))


def total_pss(processes: Iterable[psutil.Process]) -> int:
    """Return the sum of the processes' proportional set sizes in bytes; a process that has ended counts nothing."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss
    return total
