"""How often is a verdict on the real engine wrong? Boots, sessions without a change, and engines that are worse.

    python -m benchmarks.power.engine [--dir DIR] [--rounds 6] [--boots 12] [--sessions 20] [--against ENGINE …] …

1. Rounds of one boot of every tier with three loads each (profile `epochs`): how far boots and epochs of one boot
   spread. The three loads are contexts that differ by a token, so that an epoch is a cell like any other.
2. A baseline of one tier with what gates here (profile `power`, which is `cpu-nightly`).
3. Whole pytest sessions against it: of the same engine, of one whose servers sit behind a delaying proxy, and of one
   whose vLLM lost its KV connector; and of an S3 server with a bandwidth cap against the baseline of step 1.
4. With --against, an A/B: of another engine environment, of the same (`same`), of one behind the proxy (`+30%`).

Takes hours on two cores, so a run that was ended goes on where it stopped: DIR/sessions.csv has a line a gate of every
session that is done, DIR/logs what each printed. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.power import epochs
from benchmarks.power.overlay import make
from pytest_kvcache.baselines import files
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric

HERE = Path(__file__).parents[2]
CONTEXT_TOKENS = 3500
#: Words of --against.
SAME, SLOWER = "same", re.compile(r"\+(\d+)%")
TOML = f"""
[profiles.power]
extends = "cpu-nightly"
[profiles.power.rules]
baseline_boots = {{boots}}

[profiles.epochs]
extends = "cpu-tiny"
[profiles.epochs.workload]
context_tokens = [{CONTEXT_TOKENS}, {CONTEXT_TOKENS + 1}, {CONTEXT_TOKENS + 2}]
duration_s = {{epoch_s}}

[profiles.ab]
extends = "cpu-tiny"
[profiles.ab.workload]
context_tokens = [{CONTEXT_TOKENS}]
duration_s = 24
"""


@dataclass(frozen=True)
class Job:
    """One pytest session.

    Args:
        kind: What it is of; sessions of one kind are alike.
        profile: Of kvcache.toml.
        options: Of pytest.
        engine: Makes the environment that it runs in; called when it is its turn.
        before: Words before the command.
    """

    kind: str
    profile: str
    options: tuple[str, ...]
    engine: Callable[[], Path]
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lab:
    """The project that sessions run in, and what came of them.

    Args:
        folder: Of it.
        engine: The real environment.
    """

    folder: Path
    engine: Path

    def prepare(self, *, boots: int, epoch_s: float) -> None:
        """Write the project."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        (self.folder / "kvcache.toml").write_text(TOML.format(boots=boots, epoch_s=epoch_s), encoding="utf-8")
        (self.folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n", encoding="utf-8")
        example = (HERE / "tests" / "perf" / "test_multi_round_qa.py").read_text(encoding="utf-8")
        (self.folder / "test_multi_round_qa.py").write_text(example, encoding="utf-8")

    def done(self) -> pd.DataFrame:
        """Return a row a gate of every session so far."""
        path = self.folder / "sessions.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["kind", "session"])

    def run(self, job: Job) -> pd.DataFrame:
        """Run a session, keep what it printed, and return and store a row a gate, from its JUnit properties."""
        before = self.done()
        session = before.loc[before["kind"] == job.kind, "session"].nunique() + 1
        log = self.folder / "logs" / f"{job.kind.replace(' ', '-').replace('/', '')}-{session}.txt"
        report = log.with_suffix(".xml")
        argv = [*job.before, sys.executable, "-m", "pytest", "-q", "-m", "perf"]
        argv += ["--kv-profile", job.profile, *job.options]
        argv += [f"--kv-engine={job.engine()}", "--kv-no-strict", "--benchmark-disable", f"--junitxml={report}"]
        facts = {"kind": job.kind, "session": session, "began": time.strftime("%H:%M:%S", time.gmtime())}
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as out:
            subprocess.run(
                [*argv, "test_multi_round_qa.py"],
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            )
        facts["minutes"] = round((time.monotonic() - started) / 60, 2)
        if not report.exists():
            raise SystemExit(f"{job.kind}: pytest ended without a report; {log} has what it said")
        lines = []
        for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by our own pytest
            found = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
            lines.append({**facts, "test": case.get("name"), **found})
        rows = pd.DataFrame(lines)
        pd.concat([before, rows]).to_csv(self.folder / "sessions.csv", index=False)
        return rows

    def baseline(self, profile: str, tier: str = "") -> StoredCell:
        """Return the first cell of a profile's baselines, of one tier where it is named."""
        cells = files.readable(files.scan(self.folder / "baselines"))
        found = [c for c in cells if c.cell.profile == profile and tier in {"", c.cell.tier}]
        return min(found, key=lambda stored: stored.cell.context_tokens)

    def mean(self, metric: Metric, profile: str, tier: str = "") -> float:
        """Return the geometric mean of a metric over the boots of `baseline`, in its natural unit."""
        return metric.natural(float(np.mean([metric.of(boot.figures) for boot in self.baseline(profile, tier).boots])))

    def slowed(self, share: float) -> Path:
        """Return an environment whose requests wait for a share of the baseline's TTFT before they reach a server."""
        return make(self.folder / f"slow-{share}", self.engine, delay_s=share * self.mean(DEFAULT_METRICS[0], "power"))

    def named(self, against: str) -> Path:
        """Return the environment that a word of --against means."""
        if against == SAME:
            return self.engine
        slower = SLOWER.fullmatch(against)
        return self.slowed(float(slower[1]) / 100) if slower else Path(against)


def plan(lab: Lab, args: argparse.Namespace) -> Iterator[Job]:
    """Yield every session, those that are meant to differ between those that are not: the hour is the same for both."""

    def real() -> Path:
        return lab.engine

    def slowed(share: float) -> Callable[[], Path]:
        return lambda: lab.slowed(share)

    gating = ("--tier", args.tier)
    record = ("--record-baselines", "--kv-boots", "1")
    for _ in range(args.rounds):
        yield Job("boots and epochs", "epochs", record, real)
    for _ in range(args.boots):
        yield Job("baseline", "power", (*gating, *record), real)
    worse = [Job("off", "power", gating, lambda: make(lab.folder / "off", lab.engine, off=True))]
    worse += [Job(f"slow +{share:.0%}", "power", gating, slowed(share)) for share in args.slow]
    if args.rounds:
        capped = lambda: make(lab.folder / "capped", lab.engine, bwlimit=args.bwlimit)  # noqa: E731
        worse.append(Job(f"S3 at {args.bwlimit}B/s", "epochs", ("--tier", "s3"), capped))
    for at in range(max(args.sessions, args.repeat)):
        if at < args.repeat:
            yield from worse
        if at < args.sessions:
            yield Job("nothing changed", "power", gating, real)
    for against in args.against:
        other = lab.named(against)
        options = (*gating, f"--kv-against={other}", "--kv-boots", str(2 * args.pairs))
        yield Job(f"A/B against {against if against == SAME else other.name}", "ab", options, real)


def main() -> None:
    """Measure, writing results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/power"))
    parser.add_argument("--tier", default="pnfs", help="that sessions are of")
    parser.add_argument("--rounds", type=int, default=6, help="boots of every tier, three epochs each")
    parser.add_argument("--epoch-s", type=float, default=24.0)
    parser.add_argument("--boots", type=int, default=12, help="of the baseline that sessions are held against")
    parser.add_argument("--sessions", type=int, default=20, help="in which nothing changed")
    parser.add_argument("--slow", type=float, nargs="*", default=[0.10, 0.15, 0.30], help="of the baseline's TTFT")
    parser.add_argument("--bwlimit", default="20M", help="of the S3 server, as rclone takes it")
    parser.add_argument("--repeat", type=int, default=3, help="sessions of each engine that is worse")
    parser.add_argument("--against", nargs="*", default=[], help="of A/Bs: an environment's path, `same`, or `+30%%`")
    parser.add_argument("--pairs", type=int, default=6, help="at most, of the A/B")
    args = parser.parse_args()
    lab = Lab(args.dir.absolute(), setup.engine_path(home()))
    lab.prepare(boots=args.boots, epoch_s=args.epoch_s)
    had = Counter(lab.done().drop_duplicates(["kind", "session"])["kind"])
    for job in plan(lab, args):
        if had[job.kind] > 0:
            had[job.kind] -= 1
            continue
        print(job.kind, lab.run(job).drop(columns="kind").to_string(index=False), sep="\n", flush=True)
    print(lab.done().groupby(["kind", "kv_verdict"]).size().to_string())
    cells = files.readable(files.scan(lab.folder / "baselines"))
    print(epochs.table(c for c in cells if c.cell.profile == "epochs").to_string(index=False))


if __name__ == "__main__":
    main()
