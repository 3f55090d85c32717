"""Work that nothing under test can touch, timed before and after each boot: is the machine as fast as it was?"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

#: Name of the reading of one matrix product: the median time of several (s).
MATMUL = "matmul_s"

_SIDE = 1024
_PRODUCTS = 40
_READS = 7
_FILE_BYTES = 64 << 20
_BLOCK = 1 << 20


def read(folders: Sequence[Path]) -> dict[str, float]:
    """Return the median time of a matrix product, and of reading a new file in the tier's storage (s).

    Args:
        folders: Existing folders of the tier's storage; the first one is used.
    """
    readings = {MATMUL: _matmul()}
    if folders:
        readings["storage_read_s"] = _storage(folders[0])
    return readings


def read_after(before: Mapping[str, float]) -> dict[str, float]:
    """Return readings for the time since `before`: the geometric mean of the matrix product's time then and now.

    The storage is gone by now, so that its reading is the one in `before`.

    Args:
        before: What `read` returned.
    """
    return {**before, MATMUL: math.sqrt(before[MATMUL] * _matmul())}


def _matmul() -> float:
    source = np.random.default_rng(0)
    a, b = (source.random((_SIDE, _SIDE), dtype=np.float32) for _ in range(2))
    times = []
    for _ in range(_PRODUCTS):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _storage(folder: Path) -> float:
    """Return the median time (s) to read a new file, past the page cache as far as the file system allows."""
    path = folder / ".kvcache-canary"
    block = os.urandom(_BLOCK)
    try:
        with path.open("wb") as out:
            for _ in range(_FILE_BYTES // _BLOCK):
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        return float(np.median([_read_once(path) for _ in range(_READS)]))
    finally:
        path.unlink(missing_ok=True)


def _read_once(path: Path) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while os.read(descriptor, _BLOCK):
            pass
        return time.perf_counter() - start
    finally:
        os.close(descriptor)
