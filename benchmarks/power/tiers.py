"""How often are gains and the default profile's gates wrong on the real engine? Whole sessions, unchanged and slowed.

    python -m benchmarks.power.tiers [gains] [default] [--dir DIR] [--unchanged N] [--changed N] [--boots 12]

gains: on `cpu-nightly`, with a baseline of `--boots` boots of each tier: `pnfs over gpu` and `cpu over gpu`, unchanged,
and with loads from LMCache so slow that pnfs is no faster than vLLM alone.

default: the README's two steps on `cpu-tiny`, pnfs at context 3500: `--update-baselines`, then sessions that are
unchanged and such with every load from the tier slowed by half of what a request with hits takes.

Leave the machine alone meanwhile. A session that was ended is not repeated: DIR/sessions.csv has a line for each gate.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.power import changes
from benchmarks.power.engine import CONTEXT_TOKENS, Job, Lab
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home

GAINS, DEFAULT = "gains", "default"
TOML = f"""
[profiles.{GAINS}]
extends = "cpu-nightly"
[profiles.{GAINS}.gates.gains]
"pnfs over gpu" = {{ ttft = 0.6, speed = 0.95 }}
"cpu over gpu" = {{ ttft = 0.8 }}

[profiles.{DEFAULT}]
extends = "cpu-tiny"
[profiles.{DEFAULT}.workload]
context_tokens = [{CONTEXT_TOKENS}]
"""
#: Share of the TTFT of a request with hits by which its load is made slower.
SLOWER = 0.5


def mean_of(lab: Lab, profile: str, tier: str, key: str) -> float:
    """Return the geometric mean of a figure over the boots of a profile's baseline of a tier."""
    return float(np.exp(np.mean([np.log(boot.figures[key]) for boot in lab.baseline(profile, tier).boots])))


def gain_jobs(lab: Lab, args: argparse.Namespace) -> Iterator[Job]:
    """Yield the sessions of gain gates: baselines of all tiers in turn, then the two kinds in turn."""
    real = lambda: lab.engine  # noqa: E731
    tiers = ("--tier", "gpu", "--tier", "cpu", "--tier", "pnfs")
    for _ in range(args.boots):
        record = ("--record-baselines", "--kv-boots", "1", "-k", "speed and not over")
        yield Job("gains: baseline", GAINS, (*tiers, *record), real)

    def without_gain() -> Path:
        # Each load takes what vLLM alone needs for the whole prompt.
        return changes.slow_loads(lab.folder / "no-gain", lab.engine, mean_of(lab, GAINS, "gpu", "ttft_geomean_s"))

    yield from _in_turn(
        args,
        lambda: Job("gains: unchanged", GAINS, ("-k", "over"), real),
        lambda: Job("gains: no gain", GAINS, ("-k", "pnfs and over"), without_gain),
    )


def default_jobs(lab: Lab, args: argparse.Namespace) -> Iterator[Job]:
    """Yield the README's two steps, then sessions of both kinds in turn."""
    real = lambda: lab.engine  # noqa: E731
    yield Job("default: baseline", DEFAULT, ("--tier", "pnfs", "-k", "3500", "--update-baselines"), real)

    def slowed() -> Path:
        hit_s = mean_of(lab, DEFAULT, "pnfs", "ttft_hit_over_cold") * mean_of(
            lab, DEFAULT, "pnfs", "ttft_cold_geomean_s"
        )
        return changes.slow_loads(lab.folder / "slow", lab.engine, SLOWER * hit_s)

    options = ("--tier", "pnfs", "-k", "3500")
    yield from _in_turn(
        args,
        lambda: Job("default: unchanged", DEFAULT, options, real),
        lambda: Job("default: slow loads", DEFAULT, options, slowed),
    )


def _in_turn(args: argparse.Namespace, unchanged: Callable[[], Job], changed: Callable[[], Job]) -> Iterator[Job]:
    for at in range(max(args.unchanged, args.changed)):
        if at < args.unchanged:
            yield unchanged()
        if at < args.changed:
            yield changed()


KINDS = {GAINS: gain_jobs, DEFAULT: default_jobs}


def main() -> None:
    """Measure, writing results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help="of gates; all by default")
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/tiers"))
    parser.add_argument("--unchanged", type=int, default=20, help="sessions in which nothing changed")
    parser.add_argument("--changed", type=int, default=10, help="sessions with slower loads")
    parser.add_argument("--boots", type=int, default=12, help="of each baseline of gains")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"{', '.join(unknown)}: no kind of gates")
    lab = Lab(args.dir.absolute(), setup.engine_path(home()))
    lab.prepare(boots=args.boots, epoch_s=24.0)
    (lab.folder / "kvcache.toml").write_text(TOML, encoding="utf-8")
    had = Counter(lab.done().drop_duplicates(["kind", "session"])["kind"])
    for kind in args.kinds:
        for job in KINDS[kind](lab, args):
            if had[job.kind] > 0:
                had[job.kind] -= 1
                continue
            rows = lab.run(job)
            shown = [name for name in ("session", "began", "minutes", "test", "kv_verdict") if name in rows]
            print(job.kind, rows[shown].to_string(index=False, header=False), sep="\n", flush=True)
    print(lab.done().groupby(["kind", "test", "kv_verdict"], dropna=False).size().to_string())


if __name__ == "__main__":
    main()
