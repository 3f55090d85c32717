"""The worked tests of docs/api.md, as whole sessions."""

from __future__ import annotations

from tests.projects import Project, configure
from tests.stubs.engine import toml
from tests.worked_examples import write


def test_the_worked_tests_pass(project: Project) -> None:
    """The five worked tests of docs/api.md run as they stand, and their conftest stores what is measured."""
    (project.path / "test_multi_round_qa.py").unlink()
    write(project.path)
    nvme = project.mkdir("nvme")
    tiers = (project.path / "kvcache.toml").read_text(encoding="utf-8").replace("/mnt/nvme", str(nvme))
    configure(project, toml(more=tiers))
    # The second of the pairs that tests talk to would show nothing new.
    args = ("-m", "perf", "--record-baselines", "--tier", "gpu", "--tier", "cpu", "--tier", "nvme")
    result = project.runpytest_inprocess("-p", "no:cacheprovider", *args, "-k", "not test_own_load or gpu")
    result.assert_outcomes(passed=9 + 3 + 1 + 2 + 1, deselected=4)
    stored = (project.path / "kv-results.jsonl").read_text(encoding="utf-8")
    assert stored.count('"valid": true') == 3 + 1
    assert stored.count('"verdict": "recorded"') == 9
    assert not list(nvme.iterdir())
