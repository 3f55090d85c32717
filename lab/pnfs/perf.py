"""Measures on the lab: `python -m lab.pnfs.perf [PYTEST ARGUMENTS]` brings one up and runs pytest in its namespace.

The whole session runs there: vLLM, router and load on the namespace's loopback, LMCache in the guest. Nothing is routed
out of it. While it runs, no session outside of the namespace measures on this machine's processors.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.pnfs import netem
from lab.pnfs.lab import LABEL, VARIABLE, Lab
from lab.pnfs.settings import LabSettings
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.runs.machine import PROCESSORS, MachineLock

REPOSITORY = Path(__file__).parents[2]
#: Not in the package's own folder, whose modules would hide others of their names.
CONFIG = REPOSITORY / "lab" / "kvcache.toml"
#: Not beside those of real storage.
BASELINES = REPOSITORY / ".kvcache" / "pnfs-lab" / "baselines"
_WAIT_S = 3600.0
#: What the sessions of the lab's own targets run.
TARGETS = {
    "perf": ("--kv-profile=pnfs-lab", "--tier=pnfs-lab", "--kv-boots=1"),
    "netem": ("--kv-profile=pnfs-lab-netem", "--tier=pnfs-lab", "--kv-boots=1"),
    "inside": ("--kv-profile=pnfs-lab-inside", "--tier=pnfs-lab", "--kv-boots=1"),
    "article": (
        "--kv-profile=pnfs-lab-article", "--tier=gpu", "--tier=cpu", "--tier=s3", "--tier=pnfs-lab", "--kv-boots=1"
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a session of pytest on a lab; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.pnfs.perf", description=f"{__doc__} ({LABEL})")
    parser.add_argument("--target", choices=TARGETS, help="arguments of one of make's targets, before those given here")
    parser.add_argument("--memory-mib", type=int, default=LabSettings().memory_mib, metavar="MIB", help="of the guest")
    parser.add_argument("--max-map-count", type=int, default=0, help="the host's vm.max_map_count while the lab is up")
    parser.add_argument(
        "--netem", choices=[each.name for each in netem.ALL], default="none", help="what the storage's link does"
    )
    args, pytest_args = parser.parse_known_args(argv)
    try:
        return session(args, pytest_args)
    except KvCacheError as error:
        sys.stderr.write(f"pnfs-lab: {error}\n")
        return 2


def session(args: argparse.Namespace, pytest_args: Sequence[str]) -> int:
    """Bring a lab up, run pytest in its network namespace, and take it down."""
    start_s = time.monotonic()
    lock = MachineLock([PROCESSORS])
    lock.acquire(_WAIT_S, _say)
    try:
        settings = LabSettings(memory_mib=args.memory_mib, max_map_count=args.max_map_count)
        with Lab.up(settings, say=_say) as lab:
            _say(f"lab {lab.id} is up after {time.monotonic() - start_s:.1f} s: {LABEL}")
            impairment = next(each for each in netem.ALL if each.name == args.netem)
            if impairment.name != "none":
                netem.impair(lab, impairment)
                _say(f"the guest's storage link: {impairment.name}")
            asked = command([*TARGETS.get(args.target, ()), *pytest_args], record=impairment.name == "none")
            return _run(lab.inside(asked), environment(lab.id))
    finally:
        lock.release()


def _run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a session, which gets the terminal's interruptions itself and ends in its own time; return its exit code."""
    with subprocess.Popen(argv, env=env, cwd=REPOSITORY) as process:
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        }
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command(pytest_args: Sequence[str], *, record: bool = True) -> list[str]:
    """Return the command line of a session.

    Args:
        pytest_args: More arguments.
        record: Whether a baseline that is missing is recorded: that of a link that was made slow is none.
    """
    own = ["-m", "perf", f"--kv-config={CONFIG}", f"--kv-baselines={BASELINES}"]
    own += ["--benchmark-disable", *(["--record-baselines"] if record else [])]
    return [sys.executable, "-m", "pytest", *own, *pytest_args, *_tests(pytest_args)]


def environment(lab: str) -> dict[str, str]:
    """Return the variables of a session: it finds the lab by its id, and this repository's modules."""
    found = {**os.environ, VARIABLE: lab}
    path = [str(REPOSITORY), *filter(None, [found.get("PYTHONPATH", "")])]
    return {**found, "PYTHONPATH": os.pathsep.join(path)}


def _tests(pytest_args: Sequence[str]) -> list[str]:
    """Return the perf tests, unless the caller names some."""
    named = any(not each.startswith("-") and each.partition("::")[0].endswith((".py", "perf")) for each in pytest_args)
    return [] if named else ["tests/perf"]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
