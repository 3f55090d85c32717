"""The process that samples."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from pytest_kvcache.telemetry.gpu import readings, sampler
from pytest_kvcache.telemetry.gpu.readings import Gpu, Sample, Users, Xid
from tests.stubs import nvml as stub
from tests.stubs.nvml import HEALTHY, Board, Event, Failed, Replay, install

STUB = str(Path(stub.__file__))


def sampled(replay: Replay, monkeypatch: pytest.MonkeyPatch, *, cycles: int) -> list[Gpu | Sample | Users | Xid | str]:
    """Return what is written in so many cycles."""
    library = install(replay, monkeypatch.setattr)
    found: list[Gpu | Sample | Users | Xid | str] = []

    def ended() -> bool:
        return sum(isinstance(each, Sample) for each in found) >= cycles

    sampler.sample(lambda: library, None, write=found.append, ended=ended, period_s=0)
    return found


def test_gpus_then_samples_events_and_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs come first, then samples; XID events as they come, notes once; NVML is let go of at the end."""
    lost = [HEALTHY["PowerUsage"], Failed(stub.LOST)]
    board = Board("GPU-0", values=HEALTHY | {"PowerUsage": lost})
    replay = Replay([board], events=[Event(board, 79)])
    found = sampled(replay, monkeypatch, cycles=3)
    kinds = [type(each).__name__ for each in found]
    assert kinds == ["Gpu", "Sample", "Xid", "Sample", "str", "Sample"]
    assert [each.error for each in found if isinstance(each, Sample)] == ["", "GPU is lost", "GPU is lost"]
    assert replay.ended == 1


@pytest.mark.parametrize(
    ("code", "said"), [(stub.UNKNOWN, "Unknown Error"), (9, "Driver Not Loaded"), (18, "NVML/RM version mismatch")]
)
def test_nvml_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    """A driver that is not there or does not fit is one note, and the end."""
    (note,) = sampled(Replay([], init=code), monkeypatch, cycles=1)
    assert isinstance(note, str)
    assert note.startswith("no GPU telemetry: NVML: ")
    assert said in note


def test_without_gpus_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no GPU of the run is known there is nothing to wait for."""
    replay = Replay([])
    assert sampled(replay, monkeypatch, cycles=1) == []
    assert replay.ended == 1


def test_without_the_library_it_says_so() -> None:
    """An environment without nvidia-ml-py is told what to install."""

    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'pynvml'")

    found: list[Any] = []
    sampler.sample(missing, None, write=found.append, ended=lambda: False)
    assert found == [
        "no GPU telemetry: nvidia-ml-py cannot be imported (No module named 'pynvml'); pip install nvidia-ml-py"
    ]


def wait_for(known: Callable[[], bool]) -> None:
    """Return once `known`."""
    deadline = time.monotonic() + 30
    while not known():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_it_is_ended_its_samples_are_kept(tmp_path: Path, number: int) -> None:
    """Ended or killed, what was sampled is in the file."""
    lines = tmp_path / "gpus.jsonl"
    process = subprocess.Popen([sys.executable, STUB, str(lines), "1"])
    wait_for(lambda: bool(readings.read(lines).samples))
    process.send_signal(number)
    assert process.wait(timeout=30) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    found = readings.read(lines)
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-1"]
    assert found.samples[0].sm_clock_mhz == 1980


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A run that is killed outright leaves no sampler behind."""
    lines = tmp_path / "gpus.jsonl"
    start = (
        f"import subprocess; print(subprocess.Popen({[sys.executable, STUB, str(lines)]!r}).pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for(lambda: bool(readings.read(lines).samples))
    parent.kill()
    parent.communicate()
    wait_for(lambda: not runs(pid))


def runs(pid: int) -> bool:
    """Return whether a process lives; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_on_a_machine_without_a_driver(tmp_path: Path) -> None:
    """The real program on a machine without NVML ends well, with the reason in its file."""
    if has_nvml():
        pytest.skip("this machine has NVML")
    lines = tmp_path / "gpus.jsonl"
    argv = [sys.executable, "-m", "pytest_kvcache.telemetry.gpu.sampler", str(lines)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.stderr == ""
    assert readings.read(lines).notes == ("no GPU telemetry: NVML: NVML Shared Library Not Found",)


def has_nvml() -> bool:
    """Return whether this machine has NVML."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def test_who_is_on_a_gpu_is_written_where_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line comes with the first sample and with each change of who is there."""
    board = Board("GPU-0", values=dict(HEALTHY))
    library = install(Replay([board]), monkeypatch.setattr)
    found: list[Gpu | Sample | Users | Xid | str] = []

    def ended() -> bool:
        count = sum(isinstance(each, Sample) for each in found)
        board.values["ComputeRunningProcesses"] = [(7, 1 << 30), (8, 2 << 30)] if count >= 3 else [(7, 1 << 30)]
        return count >= 5

    sampler.sample(lambda: library, None, write=found.append, ended=ended, period_s=0)
    users = [each for each in found if isinstance(each, Users)]
    assert [[each.pid for each in line.processes] for line in users] == [[7], [7, 8]]
