"""What is said of GPUs, processor, memory, limits and ports."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.preflight import machine

#: As `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` prints it.
H100 = "0, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 345, 1980, 700.00, 700.00, Enabled, 0, Disabled\n"
L4 = "1, NVIDIA L4, 550.54.15, 23034, 2, 210, 2040, 72.00, 72.00, [N/A], [N/A], [N/A]\n"


def test_gpus_as_nvidia_smi_prints_them() -> None:
    """Every field is read, and what a GPU does not say is None and no fault."""
    first, second = machine.parse_gpus(H100 + L4)
    assert (first.name, first.driver, first.memory_mib, first.ecc) == (
        "NVIDIA H100 80GB HBM3",
        "550.54.15",
        81559,
        True,
    )
    assert (second.uncorrected, second.ecc, second.mig, second.power_w) == (None, False, False, 72)
    found = machine.gpus(2, query=lambda: H100 + L4)
    assert found.status == "pass"
    assert "0: NVIDIA H100 80GB HBM3, 80 GiB, 345 of 1980 MHz, 700 W, ECC" in found.found


@pytest.mark.parametrize(
    ("old", "new", "status", "fault"),
    [
        ("Enabled, 0,", "Enabled, 3,", "fail", "3 uncorrected memory errors"),
        ("Disabled", "Enabled", "warn", "cut into MIG instances"),
        ("700.00, 700.00", "400.00, 700.00", "warn", "limited to 400 of 700 W"),
        (", 4, 345", ", 60000, 345", "warn", "60000 MiB in use by others"),
    ],
)
def test_faults_of_gpus(old: str, new: str, status: str, fault: str) -> None:
    """Memory errors fail; MIG, a lowered power limit and memory in use are warned of."""
    found = machine.gpus(1, query=lambda: H100.replace(old, new))
    assert (found.status, fault in found.found) == (status, True)


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that needs more than there are fails, with or without nvidia-smi; one for the CPU asks nothing."""
    assert machine.gpus(2, query=lambda: H100).found.startswith("1 of 2: ")
    assert machine.gpus(0).status == "pass"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(machine, "models", list)
    assert machine.gpus(2).status == "fail"
    monkeypatch.setattr(machine, "models", lambda: ["AMD GPU", "AMD GPU"])
    assert machine.gpus(2).status == "warn"


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
