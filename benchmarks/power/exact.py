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

from benchmarks.power import changes
from benchmarks.power.engine import CONTEXT_TOKENS, Job, Lab
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home

INSIDE, BESIDE = "exact", "exact-mp"
TOML = f"""
[profiles.{INSIDE}]
extends = "cpu-tiny"
[profiles.{INSIDE}.workload]
context_tokens = [{CONTEXT_TOKENS}]
yardsticks = 0

[profiles.{BESIDE}]
extends = "cpu-tiny-mp"
[profiles.{BESIDE}.workload]
context_tokens = [{CONTEXT_TOKENS}]
yardsticks = 0
"""


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
    changed = {
        "chunks of half the size": lambda: changes.told(lab.folder / "chunk", lab.engine, changes.CHUNK),
        "an L1 of 20 MB": lambda: changes.told(lab.folder / "l1", lab.engine, changes.SMALL_L1),
        "stores every second time": lambda: changes.half(lab.folder / "half", lab.engine),
    }
    if args.against:
        yield Job("baseline beside", BESIDE, record, real), 0
    for at in range(max(args.unchanged, args.changed)):
        if at < args.unchanged:
            yield (job("nothing changed, busy", real), 2) if at % 2 else (job("nothing changed", real), 0)
        if at < args.changed:
            for kind, engine in changed.items():
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
