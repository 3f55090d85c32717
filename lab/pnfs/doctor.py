"""Runs `pytest-kvcache doctor` in the guest, on the lab's own mount."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.pnfs.lab import Lab
from pytest_kvcache.check import CheckResult, Finding
from pytest_kvcache.commands.doctor import table
from pytest_kvcache.engine import setup
from pytest_kvcache.errors import RunError
from pytest_kvcache.home import home

TIER = "pnfs"
_LIMIT_S = 300.0
#: The checks that say whether a mount is pNFS over RDMA: what was negotiated, and what was used.
_PROOF = ("mount", "layouts")


def configuration(folder: str, require: str = "pnfs-rdma") -> str:
    """Return a kvcache.toml whose pnfs tier is on a folder of the guest."""
    return f'[tiers.{TIER}]\npath = "{folder}"\nrequire = "{require}"\nstand_in = "never"\n'


def findings(lab: Lab, folder: str, *, require: str = "pnfs-rdma", bench: bool = False) -> list[CheckResult]:
    """Return what the doctor finds in the guest.

    Args:
        lab: A lab that is up.
        folder: Folder of the guest that the tier is on.
        require: What the tier requires.
        bench: Whether to time the mount through LMCache's adapter, for which the engine environment has to be there.

    Raises:
        RunError: The doctor did not answer.
    """
    name = f"kvcache-{len(list((lab.guest.control / 'files').iterdir()))}.toml"
    config = lab.write(name, configuration(folder, require))
    argv = [sys.executable, "-m", "pytest_kvcache.cli", "doctor", "--tier", TIER, "--kv-config", config, "--json"]
    engine = setup.engine_path(home())
    if engine.is_dir():
        _show_engine(lab, engine)
        argv += [f"--kv-engine={engine}", *(["--bench"] if bench else [])]
    done = lab.run(argv, env=environment(), limit_s=_LIMIT_S, check=False)
    start = done.output.find("{\n")
    if start < 0:
        raise RunError(f"ended with {done.code}: {done.output[-300:]}", where="doctor in the guest")
    told = json.JSONDecoder().raw_decode(done.output, start)[0]
    return [_result(row) for row in told["checks"]]


def environment() -> dict[str, str]:
    """Return variables for a Python in the guest, which sees the host's folders read-only."""
    return {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTEST_KVCACHE_HOME": "/tmp/kvcache",  # noqa: S108 - of the guest
        "HF_HUB_OFFLINE": "1",
        "LMCACHE_TRACK_USAGE": "false",
        "OMP_NUM_THREADS": "1",
    }


def prove(lab: Lab, *, bench: bool, say: Callable[[str], None]) -> int:
    """Print the doctor's table of the lab's first mount, and whether it is pNFS over RDMA; return the exit code."""
    results = [r for r in findings(lab, lab.mounts[0], bench=bench) if bench or r.subject == f"tier {TIER}"]
    for line in table(results):
        say(line)
    proof = {r.name: r.finding.status for r in results if r.subject == f"tier {TIER}" and r.name in _PROOF}
    is_proved = proof == dict.fromkeys(_PROOF, "pass")
    said = ", ".join(f"{name} {status}" for name, status in proof.items()) or "the tier cannot run"
    say(f"pnfs-rdma: {'pass' if is_proved else 'fail'} ({said}; {lab.mounts[0]} in the guest)")
    return 0 if is_proved else 1


def _show_engine(lab: Lab, engine: Path) -> None:
    """Have the guest see the engine environment, once."""
    if not lab.guest.told("files/engine-shown"):
        lab.show(engine)
        lab.write("engine-shown", "yes")


def _result(row: Mapping[str, Any]) -> CheckResult:
    return CheckResult(row["subject"], row["check"], Finding(row["status"], row["found"], row["todo"]))
