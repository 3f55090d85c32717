"""The plugin installed from its wheel, in somebody else's project and environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pytest_kvcache.engine import connector
from tests.projects import Project, configure
from tests.stubs.engine import toml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(argv, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    return python


def test_the_wheel_holds_data_files_and_types(wheel: Path) -> None:
    """Built-in configuration, locks and the typing marker are in the wheel; tests are not."""
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("config/builtin.toml", "engine/locks/cpu.txt", "engine/locks/torch.txt", "py.typed"):
        assert f"pytest_kvcache/{name}" in names
    # The connector for CPU tensors, whole: `setup` builds it from there.
    in_wheel = {name for name in names if name.startswith("pytest_kvcache/engine/cpu_connector/")}
    assert in_wheel == {str(path.relative_to(ROOT)) for path in connector.files()}
    assert not any(name.startswith("tests/") for name in names)


def test_another_project_runs_it(project: Project, clean_python: Path) -> None:
    """In a clean environment another project's `pytest -m perf` measures every tier, without our conftest."""
    configure(project, toml())
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    argv = [str(clean_python), "-m", "pytest", "-m", "perf", "--record-baselines"]
    done = subprocess.run(argv, cwd=project.path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout
    listed = subprocess.run([str(clean_python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listed for name in ("torch", "vllm", "lmcache"))


def test_the_command_line_works_there(clean_python: Path, tmp_path: Path) -> None:
    """`pytest-kvcache render` works from the wheel."""
    argv = [str(clean_python.parent / "pytest-kvcache"), "render", "--kv-profile", "qwen3-8b", "--tier", "pnfs"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vllm serve Qwen/Qwen3-8B" in done.stdout.replace(" \\\n    ", " ")
