"""What targets of the Makefile run."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
METADATA = importlib.metadata.metadata("pytest-kvcache")


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


def test_perf_tests_need_no_tools_of_developers() -> None:
    """What `make perf` runs is collected where nothing of the `dev` extra can be imported."""
    of_dev = _modules(METADATA.get_all("Requires-Dist") or (), extra="dev") - _modules(
        METADATA.get_all("Requires-Dist") or (), extra=""
    )
    assert {"hypothesis", "aiohttp", "xdist", "pytest_timeout"} <= of_dev
    program = (
        f"import sys, pytest; sys.modules.update(dict.fromkeys({sorted(of_dev)}))\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-m', 'perf', 'tests/perf', '-p', 'no:cacheprovider',"
        " '-p', 'pytest_benchmark.plugin', '-p', 'pytest_kvcache.plugin']))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, env=environ, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_multi_round_qa[pnfs-3500-tokens]" in done.stdout


def _modules(requirements: Iterable[str], *, extra: str) -> set[str]:
    """Return the modules that the distributions of an extra, "" for none, bring themselves."""
    wanted = {
        canonicalize_name(each.name)
        for each in map(Requirement, requirements)
        if (each.marker is None if not extra else each.marker is not None and each.marker.evaluate({"extra": extra}))
    }
    return {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if wanted & {canonicalize_name(name) for name in names}
    }


def test_help_names_the_variable() -> None:
    """The list of targets says how a baseline is taken in one session."""
    (line,) = [line for line in make("help").splitlines() if line.startswith("make perf ")]
    assert "BOOTS=6" in line
