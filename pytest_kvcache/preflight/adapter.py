"""Time a tier's storage through the adapter that LMCache itself will use, and verify every byte."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from typing import Any

from pytest_kvcache.check import Finding, Status
from pytest_kvcache.errors import BootError
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving import pair
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.storage import bucket as buckets

_KEYS, _ROUNDS, _SIZE_KIB = 16, 2, 512
_LIMIT_S = 120.0
_VERIFIED = re.compile(r"All \d+ keys data verified OK")
_START_LIMIT_S = 30.0
#: `lmcache bench l2` names all objects after one model, and has no option for another name: benches on one bucket would
#: overwrite each other's objects. The name is an argument's default (0.4.6 to 0.5.6), which this program replaces.
_PROGRAM = """
import sys
from lmcache.cli.commands.bench.l2_adapter_bench import data
from lmcache.cli.main import main
model, *sys.argv[1:] = sys.argv[1:]
defaults = data.make_object_keys.__defaults__
if defaults is None or "bench-model" not in defaults:
    sys.exit("error: this LMCache gives the objects of its bench other names than those that could be removed")
data.make_object_keys.__defaults__ = tuple(model if value == "bench-model" else value for value in defaults)
sys.exit(main())
"""


def bench_plan(plan: TierPlan, adapter: Mapping[str, Any], python: str, session: RunSession) -> Finding:
    """Start a tier's own storage, time it, and stop and remove it.

    Objects have a name that no other bench and no model has; from a bucket of the user only these objects are removed.

    Args:
        plan: Plan of the tier.
        adapter: L2 adapter of the tier.
        python: The interpreter that has LMCache.
        session: Session that owns the folders and processes.
    """
    for folder in plan.folders:
        session.make_folder(folder)
    launcher, logs = ProcessStarter(session), session.scratch
    storage = ServingPlan(plan, plan.storage, base_url="", model="", server_urls={}, metrics_urls={})
    try:
        served = pair.boot(storage, launcher, logs, timeout_s=_START_LIMIT_S)
    except BootError as error:
        return Finding("fail", error.what, error.todo)
    model, left = f"pytest-kvcache-bench-{secrets.token_hex(8)}", ""
    try:
        found = bench(python, adapter, {**os.environ, **plan.env, **plan.secret_env}, model=model)
    finally:
        launcher.stop(list(served.handles))
        if plan.bucket is not None:
            left = buckets.remove(plan.bucket, model=model, salt="")
    if not left:
        return found
    status: Status = "warn" if found.status == "pass" else found.status
    return Finding(status, f"{found.found}; {left}", found.todo)


def bench(python: str, adapter: Mapping[str, Any], env: Mapping[str, str], *, model: str) -> Finding:
    """Store, look up and load 16 objects of 512 KiB three times (`lmcache bench l2`), and compare what comes back.

    The first round of each step is a warm-up. The objects stay where they were stored: the caller removes them.

    Args:
        python: The interpreter that has LMCache.
        adapter: L2 adapter, as for `lmcache server --l2-adapter`.
        env: Environment of the program with credentials; the adapter goes there too, not on the command line.
        model: Beginning of the names of the objects.
    """
    argv = [python, "-c", _PROGRAM, model, "bench", "l2", "--no-skip-verify", "--lookup-max-hit-rate", "1.0"]
    argv += ["--format", "json"]
    argv += ["--num-keys", str(_KEYS), "--rounds", str(_ROUNDS), "--data-size-kb", str(_SIZE_KIB)]
    try:
        done = subprocess.run(
            argv,
            env={**env, "L2_ADAPTER_JSON": json.dumps(dict(adapter)), "LMCACHE_DISABLE_BANNER": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Finding("fail", f"lmcache bench l2 did not end within {_LIMIT_S:.0f} s", "does the storage answer?")
    return judge(done.returncode, done.stdout, done.stderr)


def judge(exit_code: int, out: str, errors: str) -> Finding:
    """Return what `lmcache bench l2 --format json` found (LMCache 0.5); the JSON stands between lines of progress."""
    start = re.search(r"^\{$", out, re.MULTILINE)
    if start is None:
        said = [line for line in f"{out}\n{errors}".splitlines() if re.search(r"error|fail|refused", line, re.I)]
        return Finding("fail", (said or ["lmcache bench l2 failed"])[-1].strip()[:200], "do the checks above pass?")
    metrics = json.JSONDecoder().raw_decode(out, start.start())[0]["metrics"]
    steps = {op["operation"]: op for key, op in metrics.items() if key.startswith("op_")}
    lacking = [f"{name} {op['total_success']} of {op['total_keys']}" for name, op in steps.items() if _lacks(op)]
    if lacking:
        todo = "LMCache logs such failures and goes on: let its credentials and the space be looked at"
        return Finding("fail", f"objects through LMCache's adapter: {', '.join(lacking)}", todo)
    if exit_code != 0 or not _VERIFIED.search(out):
        return Finding("fail", "what was stored is not what was loaded", "do not trust this storage")
    speed = ", ".join(f"{name.lower()} {_speed(op)}" for name, op in steps.items())
    return Finding("pass", f"{_KEYS} objects of {_SIZE_KIB} KiB, verified: {speed}")


def _lacks(op: Mapping[str, Any]) -> bool:
    return int(op["total_success"]) < int(op["total_keys"]) or bool(op["rounds_timed_out"])


def _speed(op: Mapping[str, Any]) -> str:
    each = f"{op['latency_per_key_ms']:.2f} ms each"
    return f"{op['throughput_avg_mbps']:.0f} MB/s ({each})" if op["throughput_avg_mbps"] else each
