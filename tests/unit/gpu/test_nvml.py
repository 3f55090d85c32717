"""NVML's structures and errors, replayed at the level of C under nvidia-ml-py's own functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from pytest_kvcache.telemetry.gpu.nvml import Nvml
from pytest_kvcache.telemetry.gpu.readings import GpuProcess, Sample
from tests.stubs.nvml import (
    HEALTHY,
    LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    Board,
    Event,
    Failed,
    Replay,
    install,
)

Open = Callable[..., Nvml]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return NVML with these boards and GPUs."""

    def opened(boards: list[Board], identifiers: list[str] | None = None, **more: Any) -> Nvml:
        return Nvml(install(Replay(boards, **more), monkeypatch.setattr), identifiers)

    return opened


def board(uuid: str = "GPU-0", **values: Any) -> Board:
    """Return a healthy GPU, but for `values`."""
    return Board(uuid, values=HEALTHY | values)


def test_a_sample_has_what_the_structures_hold(opened: Open) -> None:
    """Every field of a sample comes from the place in NVML's structures where nvml.h has it, in its unit."""
    (found,) = opened([board()]).samples()
    assert found == Sample(
        monotonic_s=found.monotonic_s,
        wall_s=found.wall_s,
        uuid="GPU-0",
        utilization_gpu_percent=97,
        utilization_memory_percent=41,
        memory_used_bytes=75520809984,
        memory_total_bytes=85520809984,
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        power_w=612.345,
        power_limit_w=700.0,
        temperature_c=63,
        clock_reasons=0,
        ecc_corrected=5,
        ecc_uncorrected=0,
    )


FIELDS = {
    "UtilizationRates": {"utilization_gpu_percent", "utilization_memory_percent"},
    "MemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
    "ClockInfo": {"sm_clock_mhz", "memory_clock_mhz"},
    "PowerUsage": {"power_w"},
    "EnforcedPowerLimit": {"power_limit_w"},
    "TemperatureV": {"temperature_c"},
    "CurrentClocksEventReasons": {"clock_reasons"},
    "TotalEccErrors": {"ecc_corrected", "ecc_uncorrected"},
}


@pytest.mark.parametrize(("function", "missing"), FIELDS.items())
@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_what_a_gpu_does_not_say_is_missing(opened: Open, function: str, missing: set[str], code: int) -> None:
    """A field that is not supported is None and no news; one that fails otherwise is None and said, once."""
    nvml = opened([Board("GPU-0", values=HEALTHY | {function: Failed(code)})])
    for _ in range(3):
        (found,) = nvml.samples()
        assert {name for name, value in vars(found).items() if value is None} == missing
        assert not found.error
    assert len(nvml.notes) == (0 if code == NOT_SUPPORTED else 2 if function == "ClockInfo" else 1)


@pytest.mark.parametrize(
    ("new", "old", "name"),
    [
        ("nvmlDeviceGetCurrentClocksEventReasons", "CurrentClocksThrottleReasons", "clock_reasons"),
        ("nvmlDeviceGetTemperatureV", "Temperature", "temperature_c"),
    ],
)
@pytest.mark.parametrize("lacks", ["driver", "nvidia-ml-py"])
def test_older_names_are_asked_where_the_new_ones_are_not_there(
    opened: Open, monkeypatch: pytest.MonkeyPatch, *, new: str, old: str, name: str, lacks: str
) -> None:
    """A driver or an nvidia-ml-py from before a function was renamed gives the same values under its older name."""
    if lacks == "nvidia-ml-py":
        monkeypatch.delattr(pynvml, new)
    (found,) = opened([Board("GPU-0", values=HEALTHY | {old: 0x24})], without=[new]).samples()
    assert getattr(found, name) == 0x24


@pytest.mark.parametrize("function", [*FIELDS, "RegisterEvents"])
def test_a_gpu_that_is_lost_is_named(opened: Open, function: str) -> None:
    """A GPU that fell off the bus is a sample with that error beside those of the others, whatever is asked first."""
    nvml = opened([board(), board("GPU-1", **{function: Failed(LOST)})])
    fine, lost = nvml.samples()
    assert not fine.error
    assert fine.sm_clock_mhz == 1980
    assert lost.error == ("" if function == "RegisterEvents" else "GPU is lost")
    assert any("GPU 1" in note and "lost" in note for note in nvml.notes)


@pytest.mark.parametrize(
    ("identifier", "uuid"),
    [
        ("1", "GPU-bbbb-2222"),
        ("GPU-bbbb-2222", "GPU-bbbb-2222"),
        ("GPU-b", "GPU-bbbb-2222"),
        ("MIG-cccc-3333", "MIG-cccc-3333"),
        ("MIG-c", "MIG-cccc-3333"),
        ("MIG-GPU-bbbb-2222/3/0", "MIG-cccc-3333"),
        (" 0 ", "GPU-aaaa-1111"),
    ],
)
def test_a_gpu_by_each_of_its_names(opened: Open, identifier: str, uuid: str) -> None:
    """A number of the PCI bus order, a UUID or its beginning, a MIG instance by either name: as CUDA takes them."""
    whole = Board("GPU-bbbb-2222", values=HEALTHY)
    part = Board("MIG-cccc-3333", values={"MemoryInfo": (10, 4, 6)}, parent=whole, instance=(3, 0))
    nvml = opened([Board("GPU-aaaa-1111", values=HEALTHY), whole, part], [identifier])
    assert [gpu.uuid for gpu in nvml.gpus] == [uuid]
    assert nvml.notes == []


def test_a_mig_instance_has_its_own_memory_and_its_gpus_clocks(opened: Open) -> None:
    """NVML says clocks, power and heat of the GPU only, and they are those of its instances."""
    whole = board(UtilizationRates=Failed(NOT_SUPPORTED))
    part = Board("MIG-1", values={"MemoryInfo": (10, 4, 6)}, parent=whole, instance=(3, 0))
    nvml = opened([whole, part], ["MIG-1"])
    (found,), (gpu,) = nvml.samples(), nvml.gpus
    assert (found.memory_used_bytes, found.sm_clock_mhz, found.utilization_gpu_percent) == (6, 1980, None)
    assert (gpu.index, gpu.instance, str(gpu)) == (0, 3, "GPU 0 (MIG instance 3) NVIDIA H100 80GB HBM3")


def test_only_the_gpus_of_the_run(opened: Open) -> None:
    """Of four GPUs those that are named are sampled, each once; one that is not there is said; without names, all."""
    boards = [board(f"GPU-{n}") for n in range(4)]
    nvml = opened(boards, ["2", "GPU-3", "3", "9", "GPU-x"])
    assert [sample.uuid for sample in nvml.samples()] == ["GPU-2", "GPU-3"]
    assert nvml.notes == ["GPU '9' is not looked at: Not Found", "GPU 'GPU-x' is not looked at: Not Found"]
    assert len(opened(boards).gpus) == 4


def test_xid_events(opened: Open) -> None:
    """Each event is of the GPU that its handle names, with its number and MIG instance; other kinds are no XIDs."""
    one, two = board(), board("GPU-1")
    events = [Event(two, 79), Event(one, 13, instance=5), Event(one, 1, kind=0x1)]
    nvml = opened([one, two], events=events)
    found = [xid for _ in range(4) for xid in nvml.wait(0.001)]
    assert [(x.uuid, x.number, x.instance) for x in found] == [("GPU-1", 79, None), ("GPU-0", 13, 5)]


def test_events_that_cannot_be_heard(opened: Open) -> None:
    """A GPU that reports no events, or a wait that fails, is said; samples go on."""
    deaf = opened([board(RegisterEvents=Failed(NOT_SUPPORTED))])
    assert deaf.notes == ["GPU 0 NVIDIA H100 80GB HBM3: XID events: Not Supported"]
    assert deaf.wait(0.001) == []
    broken = opened([board()], events=[Failed(LOST), Event(board(), 79)])
    assert [broken.wait(0.001), broken.wait(0.001)] == [[], []]
    assert broken.notes == ["XID events are heard no more: GPU is lost"]
    assert len(broken.samples()) == 1


def test_who_computes_on_a_gpu(opened: Open) -> None:
    """Processes have their memory, and here their name and session; a GPU that does not list any says nothing."""
    me, nobody = os.getpid(), 2**22 + 5  # above the highest number that the kernel gives
    listed = board("GPU-0", ComputeRunningProcesses=[(nobody, 3 << 30), (me, 1 << 30)])
    nvml = opened([listed, board("GPU-1", ComputeRunningProcesses=[]), board("GPU-2")])
    found = {each.uuid: each.processes for each in nvml.users()}
    name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    assert found == {
        "GPU-0": (GpuProcess(me, name, os.getsid(0), 1 << 30), GpuProcess(nobody, memory_bytes=3 << 30)),
        "GPU-1": (),
    }
    assert nvml.notes == []


def test_a_gpu_that_lists_no_processes_to_us_is_noted(opened: Open) -> None:
    """That a driver refuses to list processes is a note, and no end of the samples."""
    nvml = opened([board("GPU-0", ComputeRunningProcesses=Failed(NO_PERMISSION))])
    assert nvml.users() == []
    assert len(nvml.samples()) == 1
    assert any("processes" in note for note in nvml.notes)
