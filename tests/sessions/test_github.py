"""What a whole session tells GitHub Actions: a page with table and chart, and annotations at the lines of tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.projects import PATCH, Project, configure, run
from tests.stubs.engine import toml
from tests.unit.test_markdown import read_command, rendered


@pytest.fixture
def summary(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that becomes the page of the run; the session runs as in a job of GitHub Actions."""
    path = project.path.parent / f"{project.path.name}-summary.md"
    path.write_text("earlier text of the step\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    monkeypatch.setenv("GITHUB_RUN_ID", "42")
    return path


def told(result: pytest.RunResult, *, doubts: bool = False) -> list[tuple[str, dict[str, str], str]]:
    """Return the annotations of a session's log; without those of doubtful times, which a busy machine brings."""
    found = [read_command(line) for line in result.outlines if line.startswith("::")]
    return [each for each in found if doubts or not each[1]["title"].startswith("suspect")]


def test_the_page_has_table_chart_and_artefacts(project: Project, summary: Path) -> None:
    """After earlier text come outcome, a row a cell, the chart of all contexts, old to new, and where the rest is."""
    configure(project, toml(contexts=(50, 90)))
    result = run(project, "-m", "perf", "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=6)
    assert told(result) == []
    text = summary.read_text()
    assert text.startswith("earlier text of the step\n\n### KV cache tiers&#58; stub\n")
    assert re.search(r"^\*\*\d recorded.*\*\*$", text, re.MULTILINE)
    assert "(https://example.org/owner/name/actions/runs/42#artifacts)" in text
    assert re.search(r"^\| gpu \| 50 \| [\d.]+ \|", text, re.MULTILINE)
    assert re.search(r"^\| gpu \| 90 \| [\d.]+ \|", text, re.MULTILINE)
    assert re.search(
        r'^  x-axis "user context \(tokens\)" \["50", "90"\]\n.*\n  line "gpu" \[[\d.]+, ', text, re.MULTILINE
    )
    assert text.count("```mermaid") == 2
    assert "Baselines, old to new" in text
    assert {"table", "td", "code", "a"} <= set(rendered(text.splitlines()).tags)


def test_a_regression_is_annotated_at_its_test(project: Project, summary: Path, tmp_path: Path) -> None:
    """The failing gate is an error at the line of its test, by its path in the repository; JUnit stays as it is."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "gpu", "--junitxml=j.xml")
    result.assert_outcomes(failed=3)
    found = told(result)
    assert [level for level, _, _ in found] == ["error"] * 3
    source = (project.path / "test_multi_round_qa.py").read_text().splitlines()
    for (_, properties, message), gate in zip(found, ("ttft", "speed", "decode"), strict=True):
        assert properties["title"] == f"no-baseline: test_multi_round_qa[gpu-50-{gate}]"
        assert properties["file"] == f"{project.path.name}/test_multi_round_qa.py"
        assert source[int(properties["line"]) - 1].startswith("def test_multi_round_qa(")
        assert "to record one: pytest -m perf" in message
    assert "- **no-baseline**&#58;" not in summary.read_text()
    assert "- **no-baseline**: test&#95;multi&#95;round&#95;qa&#91;gpu-50-ttft&#93;" in summary.read_text()
    assert "::error" not in (project.path / "j.xml").read_text()


def test_failed_tests_are_left_to_another_plugin_that_annotates(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pytest-github-actions-annotate-failures in the session no failure is annotated twice; the page has all."""
    configure(project, toml())
    module = "pytest_github_actions_annotate_failures"
    project.makepyfile(**{module: ""})
    result = run(project, "-m", "perf", "--tier", "gpu", "-p", module)
    result.assert_outcomes(failed=3)
    assert told(result) == []
    assert summary.read_text().count("- **no-baseline**") == 3


def test_a_run_without_a_verdict_is_a_warning(project: Project, summary: Path) -> None:
    """An invalid run says nothing of the change: its tests fail, and are annotated as warnings."""
    configure(project, toml(vllm_args='"--stub-fail", "500"', duration_s=0.5))
    result = run(project, "-m", "perf", "--tier", "gpu")
    result.assert_outcomes(failed=3)
    assert [(level, p["title"].split(":")[0]) for level, p, _ in told(result)] == [("warning", "invalid")] * 3
    assert summary.read_text().count("- **invalid**: ") == 3


def test_tests_without_a_decision_and_doubtful_times_are_warnings(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that passes without a decision is annotated at its line, and so is a cell whose times are doubtful."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--record-baselines").assert_outcomes(passed=3)
    project.makeconftest(
        PATCH
        + """
from pytest_kvcache.campaign.result import CellResult
patch.setattr(CellResult, "suspicions", ("the <clock> jumped",))
"""
    )
    configure(project, toml(qps=25))
    result = run(project, "-m", "perf", "--tier", "gpu", "--kv-no-strict")
    assert result.ret == pytest.ExitCode.OK
    found = told(result, doubts=True)
    assert [(level, p["title"].split(":")[0]) for level, p, _ in found] == [
        *[("warning", "incomparable")] * 3,
        ("warning", "suspect"),
    ]
    assert "workload.qps: 20.0 -> 25.0" in found[0][2]
    assert found[3][2] == "the <clock> jumped"
    assert found[3][1]["file"].endswith("/test_multi_round_qa.py")
    assert "- **suspect**: gpu, context 50&#58; the &#60;clock&#62; jumped" in summary.read_text()


def test_a_tier_that_does_not_boot_is_annotated(project: Project, summary: Path) -> None:
    """A test that fails before anything is measured is an error with the first cause, and the page says so."""
    configure(project, toml(vllm_args='"--stub-fail", "boot"'))
    result = run(project, "-m", "perf", "--tier", "gpu")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert {level for level, _, _ in told(result)} == {"error"}
    assert "**nothing was measured**" in summary.read_text()


@pytest.mark.parametrize("args", [["-q"], ["-p", "no:terminal"]], ids=" ".join)
def test_annotations_are_lines_of_their_own(project: Project, summary: Path, args: list[str]) -> None:
    """However pytest prints, each annotation begins a line of the log."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "gpu", *args)
    assert len(told(result)) == 3
    assert len([line for line in result.outlines if "::error" in line]) == 3


@pytest.mark.parametrize("kind", ["no folder", "empty name"])
def test_a_summary_that_cannot_be_written_is_a_warning(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The session's outcome stays the same, and one line says why there is no page; an empty name asks for none."""
    configure(project, toml())
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary / "no" / "x.md") if kind == "no folder" else "")
    result = run(project, "-m", "perf", "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.OK
    warned = [line for line in result.outlines if "warning: the summary for GitHub was not written" in line]
    assert len(warned) == (0 if kind == "empty name" else 1)


def test_outside_of_github_nothing_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the runner's variables there is neither a page nor an annotation."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "gpu")
    result.assert_outcomes(failed=3)
    assert told(result) == []


def test_a_collection_writes_no_page(project: Project, summary: Path) -> None:
    """A session that only lists tests leaves the page alone."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--collect-only")
    assert summary.read_text() == "earlier text of the step\n"
