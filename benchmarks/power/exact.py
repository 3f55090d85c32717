"""How often is the exact gate wrong on the real engine? Sessions of one boot, unchanged and with a cache that is not.

    python -m benchmarks.power.exact [--dir DIR] [--unchanged 30] [--changed 10] [--against ENGINE]

1. A baseline of one boot in either mode of LMCache (inside vLLM, beside it).
2. Sessions of one boot and the gate `tokens` alone: nothing changed, every second one beside two busy loops; an engine
   whose LMCache has chunks of half the size, an L1 of 20 MB, or stores only every second time. The plugin is told
   nothing of it: the overlay's programs change what LMCache reads.
3. With --against, the same of another engine environment (an older LMCache), beside vLLM, where the two differ.

A session that was ended is not repeated: DIR/sessions.csv has a line for each, DIR/logs what it printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.power.engine import CONTEXT_TOKENS, Job, Lab
from benchmarks.power.overlay import make
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home

INSIDE, BESIDE = "exact", "exact-mp"
TOML = f"""
[profiles.{INSIDE}]
extends = "cpu-tiny"
[profiles.{INSIDE}.workload]
context_tokens = [{CONTEXT_TOKENS}]

[profiles.{BESIDE}]
extends = "cpu-tiny-mp"
[profiles.{BESIDE}.workload]
context_tokens = [{CONTEXT_TOKENS}]
"""
#: Variables that LMCache takes in place of what its YAML says (`lmcache/v1/config.py`, `_update_config_from_env`).
CHUNK = {"LMCACHE_CHUNK_SIZE": "128"}
SMALL_L1 = {"LMCACHE_MAX_LOCAL_CPU_SIZE": "0.02"}
#: Loaded by the interpreter at its start: every second call of LMCache's `store` returns before it stores anything.
HALF = """
import importlib.abc
import importlib.util
import itertools
import sys

NAME = "lmcache.v1.cache_engine"


class Halves(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            whole, calls = module.LMCacheEngine.store, itertools.count()

            def store(self, *args, **kwargs):
                return whole(self, *args, **kwargs) if next(calls) % 2 == 0 else None

            module.LMCacheEngine.store = store

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Halves())
"""


def told(folder: Path, engine: Path, variables: dict[str, str]) -> Path:
    """Write an overlay whose vLLM gets some environment variables in place of what the plugin set; return it."""
    make(folder, engine)
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec env {words} {engine}/bin/python "$@"\n', encoding="utf-8")
    return folder


def half(folder: Path, engine: Path) -> Path:
    """Write an overlay whose LMCache stores only every second time; return it."""
    hook = folder / "hook"
    hook.mkdir(parents=True, exist_ok=True)
    (hook / "sitecustomize.py").write_text(HALF, encoding="utf-8")
    return told(folder, engine, {"PYTHONPATH": str(hook)})


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep processors busy by as many processes."""
    started = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def plan(lab: Lab, args: argparse.Namespace) -> Iterator[tuple[Job, int]]:
    """Yield every session with the number of busy loops beside it; changed and unchanged ones take turns."""

    def job(kind: str, engine: Callable[[], Path], profile: str = INSIDE) -> Job:
        return Job(kind, profile, ("--tier", "pnfs", "--kv-boots", "1", "-k", "tokens"), engine)

    real = lambda: lab.engine  # noqa: E731
    record = ("--tier", "pnfs", "--kv-boots", "1", "--record-baselines", "--kv-allow-suspect")
    yield Job("baseline inside", INSIDE, record, real), 0
    changes = {
        "chunks of half the size": lambda: told(lab.folder / "chunk", lab.engine, CHUNK),
        "an L1 of 20 MB": lambda: told(lab.folder / "l1", lab.engine, SMALL_L1),
        "stores every second time": lambda: half(lab.folder / "half", lab.engine),
    }
    if args.against:
        yield Job("baseline beside", BESIDE, record, real), 0
    for at in range(max(args.unchanged, args.changed)):
        if at < args.unchanged:
            yield (job("nothing changed, busy", real), 2) if at % 2 else (job("nothing changed", real), 0)
        if at < args.changed:
            for kind, engine in changes.items():
                yield job(kind, engine), 0
            if args.against:
                yield job("another LMCache, beside", lambda: args.against, BESIDE), 0
                yield job("nothing changed, beside", real, BESIDE), 0


def main() -> None:
    """Measure, writing results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/exact"))
    parser.add_argument("--unchanged", type=int, default=30, help="sessions in which nothing changed")
    parser.add_argument("--changed", type=int, default=10, help="sessions of each change")
    parser.add_argument("--against", type=Path, help="another engine environment, with an older LMCache")
    args = parser.parse_args()
    lab = Lab(args.dir.absolute(), setup.engine_path(home()))
    lab.prepare(boots=1, epoch_s=24.0)
    (lab.folder / "kvcache.toml").write_text(TOML, encoding="utf-8")
    had = Counter(lab.done().drop_duplicates(["kind", "session"])["kind"])
    for job, loops in plan(lab, args):
        if had[job.kind] > 0:
            had[job.kind] -= 1
            continue
        with busy(loops):
            rows = lab.run(job)
        shown = [name for name in ("session", "began", "minutes", "test", "kv_verdict") if name in rows]
        print(job.kind, rows[shown].to_string(index=False, header=False), flush=True)
    done = lab.done()
    gates = done[done["test"].str.contains("tokens")]
    print(gates.groupby(["kind", "kv_verdict"], dropna=False).size().to_string())


if __name__ == "__main__":
    main()
