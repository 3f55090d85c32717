"""A whole bisect over stub engines, with sessions of pytest as its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_kvcache.cli import main
from pytest_kvcache.history import step
from tests.projects import NOTHING, Project, configure, traces
from tests.stubs.engine import make_engine, toml

pytestmark = pytest.mark.long

#: Many boots in a row: requests that are few and far between are sent in time on a busy machine too.
CALM = toml(qps=8, duration_s=1.2)


def release(folder: Path, version: str, *, ttft_s: float) -> None:
    """Write a stub engine of an LMCache whose servers take so long to the first token."""
    engine = make_engine(folder / version, lmcache=version)
    program = engine / "bin" / "vllm"
    program.write_text(program.read_text().replace('"$@"', f'"$@" --stub-ttft {ttft_s}'))


def test_a_bisect_over_three_releases(
    project: Project, kvcache_home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The release whose servers became slower is found in two steps; its steps are kept, and nothing else is left."""
    configure(project, CALM)
    engines = tmp_path / "engines"
    for version, ttft_s in (("0.5.4", 0.02), ("0.5.5", 0.25), ("0.5.6", 0.25)):
        release(engines, version, ttft_s=ttft_s)
    args = ("--package=lmcache", "--good=0.5.4", "--bad=0.5.6", "--versions", "0.5.4", "0.5.5", "0.5.6")
    where = ("--tier=gpu", "--context=50", f"--engine={engines}/{{version}}", "--pytest=-p no:cacheprovider")
    code = main(["bisect", *args, *where])
    output = capfd.readouterr().out
    assert code == 0, output
    assert "lmcache 0.5.5 is the first release that is worse, 0.5.4 the last that is not" in output
    assert output.count("B against A, context 50") >= 2
    (path,) = (project.path / ".kvcache" / "bisect").glob("*.json")
    steps = json.loads(path.read_text())["steps"]
    assert [(each["version"], each["outcome"]) for each in steps] == [("0.5.6", "bad"), ("0.5.5", "bad")]
    assert all("regressed by +" in each["line"] for each in steps)
    judged = step.read(path.with_suffix("") / "0.5.6.xml")
    assert {(each.context_tokens, each.metric) for each in judged} == {
        ("50", "ttft"),
        ("50", "speed"),
        ("50", "decode"),
    }
    assert traces(project.path, kvcache_home) == NOTHING


def test_releases_that_are_not_there_are_passed_over(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A release without an engine, and one whose engine holds another version, leave a range with the reasons."""
    configure(project, CALM)
    engines = tmp_path / "engines"
    release(engines, "0.5.3", ttft_s=0.02)
    release(engines, "0.5.6", ttft_s=0.25)
    release(engines, "0.5.2", ttft_s=0.02)
    (engines / "0.5.2").rename(engines / "0.5.5")
    args = ("--package=lmcache", "--good=0.5.3", "--bad=0.5.6", "--versions", "0.5.4", "0.5.5")
    where = ("--tier=gpu", f"--engine={engines}/{{version}}", "--context=50", "--pytest=-p no:cacheprovider")
    code = main(["bisect", *args, *where])
    output = capfd.readouterr().out
    assert code == 3, output
    *_, four, five, six, _ = output.splitlines()
    assert "0.5.4 has no verdict: no engine: " in four
    assert "not a Python environment" in four
    assert "0.5.5 has no verdict: no engine: " in five
    assert "has lmcache 0.5.2, and not 0.5.5" in five
    assert "0.5.6 is worse" in six
