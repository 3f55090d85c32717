"""Engine environments whose LMCache is another than the plugin believes: the tier is up, and does less than it says.

Each is an overlay (`overlay.py`) whose vLLM has LMCache inside: environment variables that LMCache takes in place of
its YAML, or a module that the interpreter loads at its start and that changes one method.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.power.overlay import make

#: Variables that LMCache takes in place of what its YAML says (`lmcache/v1/config.py`, `_update_config_from_env`).
CHUNK = {"LMCACHE_CHUNK_SIZE": "128"}
SMALL_L1 = {"LMCACHE_MAX_LOCAL_CPU_SIZE": "0.02"}
#: Every second call of LMCache's `store` returns before it stores anything.
_HALF = """
    whole, calls = engine.store, itertools.count()

    def store(self, *args, **kwargs):
        return whole(self, *args, **kwargs) if next(calls) % 2 == 0 else None

    engine.store = store
"""
#: Every load from LMCache takes this much longer (s).
_SLOW = """
    whole = engine.retrieve

    def retrieve(self, *args, **kwargs):
        time.sleep({seconds})
        return whole(self, *args, **kwargs)

    engine.retrieve = retrieve
"""
_HOOK = """
import importlib.abc
import importlib.util
import itertools
import sys
import time

NAME = "lmcache.v1.cache_engine"


def change(engine):
{change}


class Changes(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            change(module.LMCacheEngine)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Changes())
"""


def told(folder: Path, engine: Path, variables: dict[str, str]) -> Path:
    """Write an overlay whose vLLM gets some environment variables in place of what the plugin set; return it."""
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    return make(folder, engine, before={"python": f"env {words}"})


def half(folder: Path, engine: Path) -> Path:
    """Write an overlay whose LMCache stores only every second time; return it."""
    return _hooked(folder, engine, _HALF)


def slow_loads(folder: Path, engine: Path, seconds: float) -> Path:
    """Write an overlay whose LMCache takes longer for each load, wherever it loads from; return it.

    Args:
        folder: Where.
        engine: The real environment.
        seconds: By how much.
    """
    return _hooked(folder, engine, _SLOW.format(seconds=seconds))


def _hooked(folder: Path, engine: Path, change: str) -> Path:
    hook = folder / "hook"
    hook.mkdir(parents=True, exist_ok=True)
    (hook / "sitecustomize.py").write_text(_HOOK.format(change=change.strip("\n")), encoding="utf-8")
    return told(folder, engine, {"PYTHONPATH": str(hook)})
