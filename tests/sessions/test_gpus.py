"""Whole sessions on a stub engine whose servers are given GPUs, with NVML replayed in the sampler's own process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.projects import NOTHING, PATCH, Project, Session, configure, run, run_folder, traces
from tests.stubs import nvml as stub
from tests.stubs.engine import toml


def give_gpus(project: Project, *, hot: bool = False, devices: str = "0,1", **more: object) -> None:
    """Have a project's stub servers, one on each GPU, allotted GPUs; and sample a replay in place of NVML."""
    servers = len(devices.split(","))
    text = toml(**more).replace("gpus_per_server = 0", f"gpus_per_server = 1\nservers = {servers}")  # type: ignore[arg-type]
    configure(project, text)
    project.makeconftest(
        PATCH
        + f"""
import sys
from pytest_kvcache.campaign import gpus
from pytest_kvcache.preflight import gpus as looks
patch.setenv("CUDA_VISIBLE_DEVICES", "{devices}")
patch.setattr(looks, "models", lambda: ["NVIDIA H100"] * 2)
patch.setattr(gpus, "SAMPLER", (sys.executable, {str(Path(stub.__file__))!r}{', "hot"' if hot else ""}))
"""
    )


def test_a_session_on_hot_gpus_is_suspect(project: Project, kvcache_home: Path) -> None:
    """Each load says which GPU throttled, why and how often; rows join with requests; nothing is left running."""
    give_gpus(project, hot=True, contexts=(50, 100), duration_s=4, qps=4)
    result = run(project, "--tier", "gpu", "--record-baselines", "--kv-boots=1")
    output = result.stdout.str()
    assert "suspect: gpu, context 50: GPU 0 NVIDIA H100 80GB HBM3 throttled in " in output
    assert "HW thermal slowdown in" in output
    assert "gpu boot-1: GPU 1 NVIDIA H100 80GB HBM3: busy in " in output
    boot = run_folder(project) / "gpu" / "boot-1"
    table = pd.read_parquet(boot / "gpus.parquet")
    assert set(table["gpu_index"]) == {0, 1}
    assert not list(boot.glob("*.jsonl"))
    for context in (50, 100):
        facts = json.loads((boot / f"context-{context}" / "run.json").read_text())
        assert [each["gpu"]["index"] for each in facts["gpus"]["each"]] == [0, 1]
        assert facts["estimates"]["gpu_sm_clock_mhz"] == 990
        assert facts["faults"] == []
        ours = table[table["context_tokens"] == context].sort_values("since_start_s")
        rows = pd.read_parquet(boot / f"context-{context}" / "requests.parquet").sort_values("last_token_s")
        joined = pd.merge_asof(rows, ours, left_on="last_token_s", right_on="since_start_s", direction="nearest")
        assert (joined["sm_clock_mhz"] == 990).all()
        assert ours["since_start_s"].between(0, facts["load"]["elapsed_s"]).all()
    assert traces(project.path, kvcache_home) == NOTHING


def test_only_the_gpus_of_the_servers_are_sampled(project: Project) -> None:
    """Another job's GPU beside them is not looked at; healthy ones make nothing suspect."""
    give_gpus(project, devices="1")
    output = run(project, "--tier", "gpu", "--record-baselines", "--kv-boots=1").stdout.str()
    assert set(pd.read_parquet(run_folder(project) / "gpu" / "boot-1" / "gpus.parquet")["gpu_index"]) == {1}
    assert "suspect: gpu" not in output
    assert "gpu boot-1: GPU 1 " in output
    assert "gpu boot-1: GPU 0 " not in output


def test_on_cpus_nothing_is_sampled(project: Project) -> None:
    """A session without GPUs starts no sampler and leaves no table."""
    configure(project, toml())
    output = run(project, "--tier", "gpu", "--record-baselines", "--kv-boots=1").stdout.str()
    boot = run_folder(project) / "gpu" / "boot-1"
    assert not list(boot.glob("gpus*"))
    assert not (boot / "logs" / "gpus.log").exists()
    assert "GPU telemetry" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_under_load_it_keeps_its_samples(project: Project, kvcache_home: Path, number: int) -> None:
    """Ctrl-C and SIGTERM end the sampler with the run; the table of what was sampled is there."""
    give_gpus(project, duration_s=60, qps=5)
    session = Session(project, "--tier", "gpu")
    session.wait_for_load()
    assert session.end(number) != 0
    assert traces(project.path, kvcache_home) == NOTHING
    assert len(pd.read_parquet(run_folder(project) / "gpu" / "boot-1" / "gpus.parquet"))
