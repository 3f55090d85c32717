"""Check whether LMCache can run inside vLLM's CPU build, which needs the connector for CPU tensors."""

from __future__ import annotations

import subprocess
from pathlib import PurePath

from pytest_kvcache.check import Finding
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import connector
from pytest_kvcache.engine.base import BaseEngine

_LOOK = (
    f"import importlib.metadata as m; d = m.distribution({connector.DISTRIBUTION!r}); "
    "print(d.version, d.locate_file(''))"
)
_LIMIT_S = 60.0


def needed(engine: BaseEngine, profile: Profile, *, offloads: bool) -> bool:
    """Whether a profile runs LMCache inside vLLM's CPU build.

    Args:
        engine: Engine that serves the profile.
        profile: Profile to serve.
        offloads: Whether the tier uses LMCache.
    """
    # A vLLM that somebody has built for CPUs is called `vllm`, and its version ends with +cpu.
    built_for_cpus = engine.is_cpu_build or "+cpu" in engine.versions.get("vllm", "")
    return offloads and built_for_cpus and not profile.gpus_per_server and profile.lmcache_mode == "in-process"


def installed(engine: BaseEngine) -> Finding:
    """Look for the connector in an engine; in an environment that `setup` made it must be the plugin's present one."""
    try:
        done = engine.call([str(engine.python), "-c", _LOOK], timeout_s=_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Finding("fail", f"its Python does not answer within {_LIMIT_S:.0f} s", "a slow disk, or a busy machine?")
    if done.returncode != 0:
        return Finding(
            "fail",
            f"no {connector.DISTRIBUTION}: without it LMCache cannot run inside vLLM's CPU build",
            f"{engine.python} -m pip install --no-deps --no-build-isolation {connector.SOURCE}, "
            'or lmcache_mode = "mp" in the profile, or the environment of `pytest-kvcache setup`',
        )
    version, _, place = done.stdout.strip().partition(" ")
    folder = PurePath(place).name
    if folder.startswith(connector.FOLDER) and folder != f"{connector.FOLDER}{connector.digest()}":
        return Finding(
            "fail",
            f"{connector.DISTRIBUTION} {version} is that of another version of pytest-kvcache",
            "run the `pytest-kvcache setup` that made the environment again: it replaces the connector in a second",
        )
    return Finding("pass", f"{connector.DISTRIBUTION} {version}")
