"""What targets of the Makefile run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*args: str) -> str:
    """Return what make prints, without what an outer make passes on."""
    environ = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS", "BOOTS"}}
    done = subprocess.run(["make", "-C", str(ROOT), *args], env=environ, text=True, capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize(("args", "boots"), [((), 1), (("BOOTS=6",), 6), (("BOOTS=12",), 12)])
def test_perf_takes_as_many_boots_as_it_is_told(args: tuple[str, ...], boots: int) -> None:
    """`make perf` takes one boot of every tier, and with BOOTS as many as that says."""
    (command,) = [line for line in make("-n", "perf", *args).splitlines() if "pytest -m perf" in line]
    assert f"--record-baselines --kv-boots {boots} " in command


@pytest.mark.parametrize(
    ("target", "says", "says_not"),
    [
        (("perf",), "pytest -m perf", "lab"),
        (("article",), "--kv-profile cpu-article", "lab"),
        (("article", "PNFS=lab"), "lab.pnfs.perf --target article", "pytest -m perf"),
        (("pnfs-lab-perf",), "lab.pnfs.perf --target perf", "pytest -m perf"),
    ],
)
def test_the_lab_runs_only_where_it_is_named(target: tuple[str, ...], says: str, says_not: str) -> None:
    """`make perf` and `make article` measure without the lab, and with PNFS=lab the article's pNFS tier is the lab."""
    lines = [line for line in make("-n", *target).splitlines() if "-m perf" in line or "lab.pnfs" in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert says_not not in lines[0]


@pytest.mark.parametrize(
    ("target", "tools"), [("perf", False), ("article", False), ("setup", False), ("test", True), ("lint", True)]
)
def test_only_tests_and_linters_wait_for_the_tools_of_developers(target: str, tools: bool, tmp_path: Path) -> None:
    """On a machine with nothing, a first measurement installs what it needs and not what tests need."""
    installs = [line for line in make("-n", f"VENV={tmp_path}", target).splitlines() if "pip install" in line]
    assert any(line.endswith("-e .") for line in installs)
    assert any("[dev]" in line for line in installs) == tools


def test_help_names_the_variable() -> None:
    """The list of targets says how a baseline is taken in one session."""
    (line,) = [line for line in make("help").splitlines() if line.startswith("make perf ")]
    assert "BOOTS=6" in line
