"""How the connector for CPU tensors gets into an engine environment."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

import pytest

from pytest_kvcache.engine import connector, setup
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.errors import SetupError


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished environment of `setup`, empty but for its marker."""
    monkeypatch.setattr(setup, "inspect", lambda path: Engine(path, {"python": platform.python_version()}))
    path = setup.engine_path(tmp_path)
    (path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (path / setup._MARKER).write_text(json.dumps({}))
    return path


def pip(argv: list[str]) -> None:
    """Stand for pip: copy the package that it was given."""
    assert argv[1:4] == ["-m", "pip", "install"]
    assert {"--no-deps", "--no-index", "--no-build-isolation"} <= set(argv)
    source, target = Path(argv[-1]), Path(argv[argv.index("--target") + 1])
    assert not source.is_relative_to(connector.SOURCE), "pip builds in the plugin's own folder"
    shutil.copytree(source, target)


def named(environment: Path) -> Path:
    """Return the folder that the environment's `.pth` file adds to the path."""
    return Path((environment / "lib" / "python3.11" / "site-packages" / connector._PTH).read_text().strip())


def test_setup_brings_an_environment_s_connector_up_to_date(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing environment gets the connector, once; another source gets a folder of its own, the old one stays."""
    asked: list[list[str]] = []

    def run(argv: list[str], _log: Path) -> None:
        asked.append(argv)
        pip(argv)

    monkeypatch.setattr(setup, "_run", run)
    said: list[str] = []
    for _ in range(2):
        setup.setup(tmp_path, said.append)
    assert len(asked) == 1
    assert [line for line in said if "connector" in line] == [said[0]]
    first = named(environment)
    assert (first / "lmcache_cpu_connector" / "plugin.py").exists()
    changed = tmp_path / "changed"
    shutil.copytree(connector.SOURCE, changed)
    (changed / "lmcache_cpu_connector" / "plugin.py").write_text("# another\n")
    monkeypatch.setattr(connector, "SOURCE", changed)
    assert not connector.is_current(environment)
    setup.setup(tmp_path, said.append)
    assert named(environment) != first
    assert first.is_dir()
    assert (named(environment) / "lmcache_cpu_connector" / "plugin.py").read_text() == "# another\n"
    assert connector.is_current(environment)


def test_a_failed_installation_changes_nothing(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pip fails the error names the log, nothing is left, and the next setup tries again."""
    monkeypatch.setattr(connector, "_pth", lambda _: environment / "pth")
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(sys.executable)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'nothing'\n")
    monkeypatch.setattr(connector, "SOURCE", broken)
    before = sorted(environment.iterdir())
    for _ in range(2):
        with pytest.raises(SetupError, match=r"\.log"):
            setup.setup(tmp_path, lambda _: None)
        assert sorted(environment.iterdir()) == before
    assert not connector.is_current(environment)


def test_what_builds_and_interpreters_leave_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte code and build folders in the source change nothing; a changed byte of a file does."""
    source = tmp_path / "source"
    shutil.copytree(connector.SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(connector, "SOURCE", source)
    before = connector.digest()
    for left in (
        "build/lib/a.py",
        "lmcache_cpu_connector/__pycache__/a.pyc",
        "lmcache_cpu_connector.egg-info/PKG-INFO",
    ):
        (source / left).parent.mkdir(parents=True, exist_ok=True)
        (source / left).touch()
    assert connector.digest() == before
    (source / "pyproject.toml").write_bytes((source / "pyproject.toml").read_bytes() + b"#")
    assert connector.digest() != before
