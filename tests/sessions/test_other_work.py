"""What becomes of a boot that had other work beside it."""

from __future__ import annotations

import json

import pytest

from tests.neighbours import Start
from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import toml


@pytest.mark.parametrize("allowed", [False, True])
def test_a_boot_beside_other_work_becomes_no_baseline(project: Project, spinning: Start, allowed: bool) -> None:
    """It is suspect, in run.json too, and refused with what to do; --kv-allow-suspect makes a baseline of it."""
    configure(project, toml(boots=2).replace("other_work = 9", "other_work = 0.001"))
    spinning()
    args = ("--tier", "gpu", "--record-baselines", *(["--kv-allow-suspect", "--kv-boots=1"] if allowed else []))
    result = run(project, *args)
    said = "other processes took * % of the processors: *; run it again on a quiet machine"
    result.stdout.fnmatch_lines([f"suspect: gpu, context 50: {said}"])
    facts = json.loads((run_folder(project) / "gpu" / "boot-1" / "context-50" / "run.json").read_text())
    assert facts["other_work"]["share"] > 0.001
    assert any(line.startswith("other processes took") for line in facts["suspicions"])
    written = list((project.path / "baselines").rglob("*.json"))
    assert not (run_folder(project) / "gpu" / "boot-2").exists()
    if allowed:
        result.assert_outcomes(passed=3)
        assert len(written) == 1
    else:
        result.assert_outcomes(failed=3)
        result.stdout.fnmatch_lines(
            ["*was not made a baseline:", f"*boot 1: {said}, or store it all the same with --kv-allow-suspect"]
        )
        assert not written
