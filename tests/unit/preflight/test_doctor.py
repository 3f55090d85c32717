"""`pytest-kvcache doctor` as a whole, on an engine of stub programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_kvcache import cli
from pytest_kvcache.commands import doctor
from pytest_kvcache.preflight import CheckResult, Finding
from tests.stubs.engine import toml


@pytest.fixture
def argv(tmp_path: Path, kvcache_home: Path, stub_engine: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command in a project with the stub profile."""
    monkeypatch.chdir(tmp_path)
    text = toml(more='\n[tiers.pnfs]\npath = "/nowhere"\n')
    (tmp_path / "kvcache.toml").write_text(text.replace("gpus_per_server", "l1_size_gb = 0.001\ngpus_per_server"))
    return ["doctor", "--kv-profile", "stub", f"--kv-engine={stub_engine}"]


def test_all_is_well(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every tier is looked at, what is seen is shown as a table, and nothing is left behind."""
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for text in ("tier gpu   can run", "tier cpu   can run", "own server", "as pnfs (stand-in: ", "0 fail"):
        assert text in out
    assert not any(Path().glob(".kvcache*"))


def test_a_failure_is_the_exit_code(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no NFS mount fails the pnfs tier, as JSON with what to do, and the command."""
    with (tmp_path / "kvcache.toml").open("a") as file:
        file.write(f'\n[tiers.mine]\nkind = "fs"\npath = "{tmp_path}"\nrequire = "pnfs-rdma"\n')
    assert cli.main([*argv, "--tier", "mine", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["fail"] == 1
    (bad,) = [check for check in found["checks"] if check["status"] == "fail"]
    assert (bad["subject"], bad["check"]) == ("tier mine", "can run")
    assert "mount the export" in bad["found"]
    assert {check["subject"] for check in found["checks"]} == {"machine", "engine", "tier mine"}


def test_an_engine_that_is_not_there(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is one failure among the findings, and says how to make one; the rest is looked at all the same."""
    assert cli.main([*argv[:-1], "--tier", "gpu"]) == 1
    assert "run `pytest-kvcache setup`" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*argv[:-1], f"--kv-engine={tmp_path}", "--tier", "gpu"]) == 1
    assert "not a Python environment" in " ".join(capsys.readouterr().out.split())  # wrapped where the path is long


def test_long_findings_are_wrapped() -> None:
    """Lines stay within 120 characters, and the remedy stands below its finding."""
    lines = doctor.table([CheckResult("tier s3", "x", Finding("warn", "word " * 60, "do " * 60))])
    assert max(len(line) for line in lines) <= 120
    assert lines[0].startswith("WARN  tier s3  x  word")
    assert any(line.strip().startswith("-> do") for line in lines)
