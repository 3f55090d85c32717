"""What a session leaves for reports: its verdicts as a file, and its page."""

from __future__ import annotations

import json

import pytest

from pytest_kvcache.report import verdict_file
from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import toml


@pytest.mark.usefixtures("pages")
def test_a_session_leaves_its_verdicts_and_its_page(project: Project) -> None:
    """The page is in the run's folder and is named; verdicts have the outcome and loads of each cell."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "gpu", "--record-baselines")
    folder = run_folder(project)
    page = folder / "report.html"
    result.stdout.fnmatch_lines([f"report: {page}"])
    assert "Outcome of each cell" in page.read_text()
    found = verdict_file.read(folder)
    assert found is not None
    (cell,) = found.cells
    assert (cell.label, cell.status) == ("gpu", "recorded")
    assert (folder / cell.loads[0] / "run.json").exists()


def test_a_regression_is_in_the_verdicts_with_its_limit(project: Project) -> None:
    """A gate's old, new, interval and margin are numbers; its limit is worse than the baseline by the margin."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--record-baselines")
    for path in (project.path / "baselines").rglob("*.json"):
        data = json.loads(path.read_text())
        boot = data["boots"][0]
        data["boots"] = [
            {**boot, "figures": boot["figures"] | {"ttft_geomean_s": boot["figures"]["ttft_geomean_s"] * f / 50}}
            for f in (0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
        ]
        path.write_text(json.dumps(data))
    run(project, "-m", "perf", "--tier", "gpu")
    found = verdict_file.read(run_folder(project))
    assert found is not None
    (cell,) = found.cells
    gate = next(gate for gate in cell.gates if gate.metric == "ttft_geomean_s")
    assert (cell.status, gate.outcome) == ("regressed", "regressed")
    assert gate.limit == pytest.approx(gate.old * (1 + gate.margin))
    assert len(cell.baseline) == 6
