"""A sampler beside a boot: what loads and boots get of it, and that it fails and outlives nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pytest_kvcache.campaign import gpus
from pytest_kvcache.campaign.gpus import BootGpus, named, watched
from pytest_kvcache.report.gpus import gpu_lines
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.telemetry.gpu.readings import Gpu, GpuProcess, Sample, Span, Users, Xid, line_of
from tests.unit.gpu.make import GPU, START_S, sample


@dataclass
class Ran:
    """A handle of a sampler that is no process."""

    component: Component
    log: Path
    code: int | None = None

    def exit_code(self) -> int | None:
        """What the test says."""
        return self.code


@dataclass
class Starter:
    """A launcher whose sampler writes what it is told, at once."""

    lines: Sequence[Gpu | Sample | Users | Xid | str] = ()
    code: int | None = None
    started: list[Component] = field(default_factory=list)
    stopped: int = 0

    def start(self, component: Component, logs: Path) -> Handle:
        """Write the lines."""
        self.started.append(component)
        file = Path(component.argv[len(gpus.SAMPLER)])
        file.write_text("".join(f"{line_of(each)}\n" for each in self.lines))
        return Ran(component, logs / "gpus.log", self.code)

    def stop(self, handles: list[Handle]) -> None:
        """Count."""
        self.stopped += len(handles)


def component(**env: str) -> Component:
    """Return a server with this environment."""
    return Component(name="vllm-0", argv=("vllm",), stage="servers", env=env)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["0", "1"], ("0", "1")),
        (["4,5", "6,7"], ("4", "5", "6", "7")),
        (["0", "0"], ("0",)),
        (["GPU-a", "MIG-b"], ("GPU-a", "MIG-b")),
        (["", "-1", "none", "void", "NoDevFiles"], ()),
        ([], ()),
    ],
)
def test_the_gpus_of_a_run_are_those_of_its_servers(given: list[str], found: tuple[str, ...]) -> None:
    """What the servers are given is what is sampled, once each; what stands for no GPU is none."""
    assert named([component(), *(component(CUDA_VISIBLE_DEVICES=each) for each in given)]) == found


def test_without_gpus_nothing_is_started(tmp_path: Path) -> None:
    """A boot on CPUs starts no process, imports no NVML, leaves no file and has no line."""
    starter, told = Starter(), list[BootGpus]()
    with watched((), starter, tmp_path, label="gpu boot-1", tell=told.append) as watch:
        assert watch.during(Span(1000, 0.0, 9.0)).facts() == {}
    assert (starter.started, starter.stopped, told, list(tmp_path.iterdir())) == ([], 0, [], [])
    assert "pynvml" not in vars(gpus)


def test_a_boot_of_two_loads(tmp_path: Path) -> None:
    """Each load is judged on its own samples, the table knows both, and the sampler is ended once."""
    lines: list[Gpu | Sample | Users | Xid | str] = [GPU]
    lines += [sample(n, clock_reasons=0x40, sm_clock_mhz=1400) for n in range(5)]
    lines += [sample(n) for n in range(5, 10)]
    starter, told = Starter(lines), list[BootGpus]()
    with watched(("4",), starter, tmp_path, label="pnfs boot-1", tell=told.append) as watch:
        first = watch.during(Span(1000, START_S, START_S + 4.5))
        second = watch.during(Span(3500, START_S + 5, START_S + 9.5))
    assert first.suspicions == [
        "GPU 4 NVIDIA H100 80GB HBM3 throttled in 5 of 5 busy samples (100%): HW thermal slowdown in 5; "
        "SM clock 1400 MHz (median)"
    ]
    assert (second.suspicions, second.figures["gpu_sm_clock_mhz"]) == ([], 1980)
    assert (starter.stopped, starter.started[0].argv[-1]) == (1, "4")
    table = pd.read_parquet(tmp_path / "gpus.parquet")
    assert table["context_tokens"].tolist() == [1000] * 5 + [3500] * 5
    assert [path.name for path in tmp_path.iterdir()] == ["gpus.parquet"]
    (boot,) = told
    assert gpu_lines([boot]) == [
        "pnfs boot-1: GPU 4 NVIDIA H100 80GB HBM3: busy in 10 of 10 samples, SM 1690 MHz (median while busy; lowest "
        "1400), clocks held by HW thermal slowdown 50%"
    ]


def test_a_line_with_everything(tmp_path: Path) -> None:
    """The report's line has clocks, power, heat, memory, reasons, memory errors, XIDs and that a GPU was lost."""
    full: dict[str, Any] = {
        "memory_clock_mhz": 2619, "power_w": 612.3, "power_limit_w": 700.0, "temperature_c": 71,
        "memory_used_bytes": 60 << 30, "memory_total_bytes": 80 << 30, "clock_reasons": 4,
    }  # fmt: skip
    lines: list[Gpu | Sample | Users | Xid | str] = [
        GPU,
        sample(0, ecc_corrected=2, ecc_uncorrected=0, **full),
        sample(1, ecc_corrected=5, ecc_uncorrected=1, **full),
        Xid(START_S + 1, GPU.uuid, 79),
        Sample(START_S + 2, 1.0, GPU.uuid, error="GPU is lost"),
        "GPU 4: GPU is lost",
    ]
    told: list[BootGpus] = []
    with watched(("4",), Starter(lines), tmp_path, label="gpu boot-2", tell=told.append):
        pass  # it ended before any load: the errors are what matters
    assert gpu_lines(told) == [
        "gpu boot-2: GPU 4 NVIDIA H100 80GB HBM3: busy in 2 of 3 samples, "
        "SM 1980 MHz (median while busy; lowest 1980), memory 2619 MHz, 612 of 700 W, 71 °C at most, 60.0 of 80.0 GiB, "
        "clocks held by SW power cap 100%, "
        "ECC 3 corrected, 1 uncorrected, XID 79, GPU is lost",
        "gpu boot-2: not looked at: GPU 4: GPU is lost",
    ]


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        (["no GPU telemetry: NVML: Driver Not Loaded"], 0, "no GPU telemetry: NVML: Driver Not Loaded"),
        ([], None, "no GPU telemetry: the sampler has found no GPU yet, and says nothing of why: {log}"),
        ([], 1, "the sampler of GPUs ended by itself (exit code 1): {log}"),
        ([GPU, sample(0)], -9, "the sampler of GPUs ended by itself (exit code -9): {log}"),
    ],
)
def test_a_sampler_that_failed_is_said(
    tmp_path: Path, lines: list[Gpu | Sample | Users | Xid | str], code: int | None, said: str
) -> None:
    """A run without GPU telemetry is no fault; facts and report say what was not looked at, and why."""
    told: list[BootGpus] = []
    with watched(("0",), Starter(lines, code), tmp_path, label="gpu boot-1", tell=told.append) as watch:
        found = watch.during(Span(1000, START_S, START_S + 0.5))
    said = said.format(log=tmp_path / "logs" / "gpus.log")
    assert (found.faults, found.suspicions) == ([], [])
    assert said in found.facts()["gpus"]["notes"]
    assert f"gpu boot-1: not looked at: {said}" in gpu_lines(told)


def test_a_sampler_that_cannot_be_started(tmp_path: Path) -> None:
    """No program, no process: the run goes on."""

    class Broken(Starter):
        def start(self, component: Component, logs: Path) -> Handle:
            raise PermissionError(f"no {component.name} in {logs.name}")

    told: list[BootGpus] = []
    with watched(("0",), Broken(), tmp_path, label="gpu boot-1", tell=told.append) as watch:
        assert watch.during(Span(1, 0.0, 1.0)).notes == watch.samplers[0].notes
    assert gpu_lines(told) == [
        "gpu boot-1: not looked at: no GPU telemetry: the sampler could not be started: no gpus in logs"
    ]


def test_a_load_with_too_few_samples_says_so(tmp_path: Path) -> None:
    """A driver that answers slowly leaves gaps, and what is said of the GPUs rests on little."""
    with watched(("4",), Starter([GPU, sample(0)]), tmp_path, label="x", tell=lambda _: None) as watch:
        found = watch.during(Span(1000, START_S, START_S + 20))
    assert found.notes == ("GPU 4 NVIDIA H100 80GB HBM3: only 1 samples in 20 s",)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_boot_keeps_its_samples(tmp_path: Path, error: type[BaseException]) -> None:
    """However a boot ends, the sampler is ended and its table written."""
    starter, told = Starter([GPU, sample(0)]), list[BootGpus]()
    with (
        pytest.raises(error),
        watched(("4",), starter, tmp_path, label="x", tell=told.append),
    ):
        raise error
    assert starter.stopped == len(told) == 1
    assert len(pd.read_parquet(tmp_path / "gpus.parquet")) == 1


def test_a_table_that_cannot_be_written_leaves_the_lines(tmp_path: Path) -> None:
    """The lines stay and are named."""
    (tmp_path / "gpus.parquet").mkdir()
    told: list[BootGpus] = []
    with watched(("4",), Starter([GPU, sample(0)]), tmp_path, label="x", tell=told.append):
        pass
    assert (tmp_path / "gpus.jsonl").exists()
    assert f"samples of GPUs are left as lines in {tmp_path / 'gpus.jsonl'}" in gpu_lines(told)[-1]


def test_strangers_are_those_that_no_leader_has_started(tmp_path: Path) -> None:
    """A load is told of processes on its GPU that are neither leaders of the run nor in their sessions."""
    server, stranger = GpuProcess(10, "vllm", 10), GpuProcess(99, "train", 90, 2 << 30)
    starter = Starter([GPU, sample(0), Users(START_S, GPU.uuid, (server, stranger))])
    leaders = [Leader(10, 1, str(tmp_path / "vllm-0.log"))]
    with watched(("4",), starter, tmp_path, label="x", tell=lambda _: None, leaders=lambda: leaders) as watch:
        found = watch.during(Span(3500, START_S, START_S + 1))
    assert [line.split(": ")[1].split(";")[0] for line in found.disturbances] == ["99 train (2.0 GiB)"]
