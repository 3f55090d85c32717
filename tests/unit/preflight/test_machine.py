"""What is said of processor, memory, limits and ports."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.preflight import machine
from tests.unit.test_tiers import QWEN


@pytest.mark.parametrize(("words", "status"), [([], "pass"), (["performance"] * 2, "pass"), (["powersave"], "warn")])
def test_governor(tmp_path: Path, words: list[str], status: str) -> None:
    """Anything but `performance` is warned of; a machine without frequency scaling is none of it."""
    for i, word in enumerate(words):
        folder = tmp_path / f"cpu{i}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{word}\n")
    assert machine.governor(tmp_path).status == status


def test_memory() -> None:
    """More than the machine has fails, more than is free is warned of."""
    memory = psutil.virtual_memory()
    assert machine.free_memory(memory.total + 1).status == "fail"
    assert machine.free_memory(memory.total - 1).status == "warn"
    assert machine.free_memory(0).status == "pass"


@pytest.mark.parametrize(
    ("mode", "gpus_per_server", "args", "gib"),
    [
        ("in-process", 1, (), 200),
        ("mp", 1, (), 200),
        ("in-process", 4, (), 800),
        ("in-process", 4, ("-tp", "4"), 800),
        ("in-process", 4, ("--tensor_parallel_size=2", "-pp", "2"), 800),
        ("mp", 4, ("-tp", "4"), 200),
        ("in-process", 0, ("--tensor-parallel-size", "2"), 400),
    ],
)
def test_ram_for_l1(mode: str, gpus_per_server: int, args: tuple[str, ...], gib: int) -> None:
    """Inside vLLM each rank pins the whole size for itself; a server beside it takes it once for all of them."""
    update = {"lmcache_mode": mode, "gpus_per_server": gpus_per_server, "vllm_args": args}
    assert machine.l1_bytes(QWEN.model_copy(update=update)) == gib << 30


def test_surroundings() -> None:
    """Settings of engines in the caller's environment are told, and nothing else is."""
    assert machine.surroundings({"PATH": "/bin", "OMP_NUM_THREADS": "1", "HF_TOKEN": "x"}).status == "pass"
    found = machine.surroundings({"LMCACHE_CHUNK_SIZE": "64", "VLLM_PORT": "5"})
    assert (found.status, found.found) == ("warn", "withheld: LMCACHE_CHUNK_SIZE, VLLM_PORT")


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ((65536, 65536), "pass"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "pass"),
        ((1024, 65536), "warn"),
        ((512, 512), "fail"),
    ],
)
def test_open_files(limits: tuple[int, int], status: str) -> None:
    """A hard limit that servers cannot live with fails; a soft one that is low is warned of."""
    assert machine.open_files(limits).status == status


def test_shared_memory(tmp_path: Path) -> None:
    """Shared memory must hold L1 in the multi-process mode, and be there at all."""
    assert machine.shm(0, tmp_path).status == "pass"
    assert machine.shm(1 << 60, tmp_path).status == "fail"
    assert machine.shm(0, tmp_path / "none").found == "not mounted"


def test_ports() -> None:
    """Too few free ports fail; here there are enough."""
    assert machine.ports(lambda _: [1] * 3).found == "only 3 of 20 found free"
    assert machine.ports().status == "pass"
