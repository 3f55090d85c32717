"""How often are the default profile's gates wrong on the real engine? The README's two steps, unchanged and slowed.

    python -m benchmarks.power.two_steps [--dir DIR] [--unchanged 10] [--changed 10]

pnfs at context 3500 on `cpu-tiny`, which has 36 gates: `--update-baselines`, then sessions that are unchanged and such
with every load from the tier slowed by half of what a request with hits takes, in turn.

Leave the machine alone meanwhile. A session that was ended is not repeated: DIR/sessions.csv has a line for each gate.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.power import changes
from benchmarks.power.engine import CONTEXT_TOKENS, Job, Lab
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from pytest_kvcache.verdict.metrics import BY_NAME

DEFAULT = "cpu-tiny"
#: Share of the TTFT of a request with hits by which its load is made slower.
SLOWER = 0.5


def plan(lab: Lab, args: argparse.Namespace) -> Iterator[Job]:
    """Yield the baseline, then sessions of both kinds in turn."""
    real = lambda: lab.engine  # noqa: E731
    options = ("--tier", "pnfs", "-k", str(CONTEXT_TOKENS))
    yield Job("default: baseline", DEFAULT, (*options, "--update-baselines"), real)

    def slowed() -> Path:
        hit_s = lab.mean(BY_NAME["tier"], DEFAULT) * lab.mean(BY_NAME["compute"], DEFAULT)
        return changes.slow_loads(lab.folder / "slow", lab.engine, SLOWER * hit_s)

    for at in range(max(args.unchanged, args.changed)):
        if at < args.unchanged:
            yield Job("default: unchanged", DEFAULT, options, real)
        if at < args.changed:
            yield Job("default: slow loads", DEFAULT, options, slowed)


def main() -> None:
    """Measure, writing results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/two-steps"))
    parser.add_argument("--unchanged", type=int, default=10, help="sessions in which nothing changed")
    parser.add_argument("--changed", type=int, default=10, help="sessions with slower loads")
    args = parser.parse_args()
    lab = Lab(args.dir.absolute(), setup.engine_path(home()))
    lab.prepare(boots=6, epoch_s=24.0)
    had = Counter(lab.done().drop_duplicates(["kind", "session"])["kind"])
    for job in plan(lab, args):
        if had[job.kind] > 0:
            had[job.kind] -= 1
            continue
        rows = lab.run(job)
        shown = [name for name in ("session", "began", "minutes", "test", "kv_verdict") if name in rows]
        print(job.kind, rows[shown].to_string(index=False, header=False), sep="\n", flush=True)
    print(lab.done().groupby(["kind", "test", "kv_verdict"], dropna=False).size().to_string())


if __name__ == "__main__":
    main()
