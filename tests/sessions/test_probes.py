"""Whole sessions on a stub engine: what a boot's probes find makes its runs invalid, and where it is told."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pytest_kvcache.campaign import boot_probes
from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import toml


def test_a_boot_is_probed_before_its_loads(project: Project) -> None:
    """Each boot has its probes' facts beside its logs, a line in the report, and the resets before a second context."""
    configure(project, toml(contexts=(50, 60)))
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            "gpu: probes: cold start; vllm-0's prompt on vllm-1: 0 of * tokens cached; same answers from the device "
            "cache, computed again (within 0) (*)"
        ]
    )
    facts = json.loads((run_folder(project) / "gpu" / "boot-1" / "probes.json").read_text())
    assert facts["faults"] == []
    steps = [each["step"] for each in facts["asked"]]
    assert steps == [name for name in ("cold", "again", "reloaded", "across", "emptied", "emptied") for _ in range(2)]


def test_what_the_probes_find_makes_a_run_invalid(project: Project) -> None:
    """Another answer from a cache than was computed: the run is invalid, with the reason, and is no baseline."""
    configure(project, toml(vllm_args='"--stub-fail", "corrupt"'))
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*is invalid: no verdict may rest on this run",
            "*corrupted KV: vllm-0 answers the same prompt differently when its KV comes from the device cache:*",
        ]
    )
    assert not list((project.path / "baselines").rglob("*.json"))


def test_a_run_that_is_invalid_before_its_load_is_short(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probes found ends the loads of the boot early; they still run, for what their counters tell."""
    monkeypatch.setattr(boot_probes, "FAULTY_LOAD_S", 1.0)
    configure(project, toml(duration_s=50, vllm_args='"--stub-fail", "corrupt"'))
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(failed=3)
    (plan,) = run_folder(project).rglob("plan.json")
    assert json.loads(plan.read_text())["workload"]["duration_s"] == 1.0
    assert len(pd.read_parquet(plan.parent / "requests.parquet")) > 0
    result.stdout.fnmatch_lines(["*corrupted KV*"])


def test_probes_can_be_left_out(project: Project) -> None:
    """With `probes = false` nothing is sent before the load, and the report says what was not looked at."""
    configure(
        project, toml(vllm_args='"--stub-fail", "corrupt"').replace("canary = false", "canary = false\nprobes = false")
    )
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["gpu: not looked at: cold start, cross-instance hits and integrity: probes = false"])
    assert not list(run_folder(project).rglob("probes.json"))
