"""How often is a verdict on the real engine wrong? A/A sessions, and sessions of an engine that is worse on purpose.

    python -m benchmarks.power.engine [--tier pnfs] [--boots 6] [--sessions 20] [--slow 0.10 0.15 0.30] [--repeat 2]

Records a baseline, then runs whole pytest sessions against it: of the same engine, of one whose servers sit behind a
delaying proxy, and of one whose vLLM lost its KV connector. Takes an hour or more on two cores; results are written as
they come to DIR/results.csv, and a baseline that DIR has already is kept. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.power.overlay import make
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from pytest_kvcache.verdict import shelf
from pytest_kvcache.verdict.metrics import JUDGED

HERE = Path(__file__).parents[2]
#: What sessions run with.
PYTHON = sys.executable
TOML = """
[profiles.power]
extends = "cpu-tiny"
[profiles.power.workload]
context_tokens = {contexts}
duration_s = {duration_s}
[profiles.power.rules]
baseline_boots = {boots}
"""


def session(folder: Path, engine: Path, tier: str, *more: str) -> list[dict[str, object]]:
    """Run a pytest session and return a line a gate, from its JUnit properties."""
    report = folder / "junit.xml"
    report.unlink(missing_ok=True)
    argv = [PYTHON, "-m", "pytest", "-q", "-m", "perf", "--tier", tier, "--kv-profile", "power"]
    argv += [f"--kv-engine={engine}", "--kv-no-strict", "--benchmark-disable", f"--junitxml={report}", *more]
    started = time.monotonic()
    done = subprocess.run([*argv, "test_multi_round_qa.py"], cwd=folder, capture_output=True, text=True, check=False)
    (folder / "last.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    minutes = (time.monotonic() - started) / 60
    lines: list[dict[str, object]] = []
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by our own pytest
        found = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        lines.append({"test": case.get("name"), "minutes": round(minutes, 2), **found})
    return lines


def prepare(folder: Path, *, contexts: list[int], duration_s: float, boots: int) -> None:
    """Make the project that sessions run in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kvcache.toml").write_text(TOML.format(contexts=contexts, duration_s=duration_s, boots=boots))
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    example = (HERE / "tests" / "perf" / "test_multi_round_qa.py").read_text(encoding="utf-8")
    (folder / "test_multi_round_qa.py").write_text(example, encoding="utf-8")


def spread(folder: Path) -> pd.DataFrame:
    """Return the sd of a boot of each metric, tier and context, from the baselines that were recorded."""
    lines = []
    for stored in shelf.readable(shelf.scan(folder / "baselines")):
        for index, metric in enumerate(JUDGED):
            logs = np.array([boot.logs(index) for boot in stored.boots])
            half = len(logs) > 1 and logs.std(ddof=1)
            lines.append(
                {
                    "tier": stored.cell.tier,
                    "context": stored.cell.context_tokens,
                    "metric": metric.short,
                    "boots": len(logs),
                    "boot sd": f"{math.expm1(half):.1%}" if len(logs) > 1 else "-",
                    "range": f"{math.exp(logs.max() - logs.min()) - 1:.1%}",
                }
            )
    return pd.DataFrame(lines)


def main() -> None:
    """Measure, writing results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="pnfs")
    parser.add_argument("--others", nargs="*", default=["gpu", "cpu", "s3"], help="tiers of which only boots are taken")
    parser.add_argument("--contexts", type=int, nargs="+", default=[3500])
    parser.add_argument("--duration", type=float, default=24.0)
    parser.add_argument("--boots", type=int, default=6)
    parser.add_argument("--other-boots", type=int, default=6)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--slow", type=float, nargs="*", default=[0.10, 0.15, 0.30], help="of the baseline's TTFT")
    parser.add_argument("--repeat", type=int, default=2, help="sessions for each slowdown")
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/power"))
    args = parser.parse_args()
    folder, engine = args.dir.absolute(), setup.engine_path(home())
    prepare(folder, contexts=args.contexts, duration_s=args.duration, boots=args.boots)
    results: list[dict[str, object]] = []

    def note(kind: str, lines: list[dict[str, object]]) -> None:
        results.extend({"kind": kind, **line} for line in lines)
        pd.DataFrame(results).to_csv(folder / "results.csv", index=False)
        print(kind, json.dumps([{k: v for k, v in line.items() if k != "test"} for line in lines]), flush=True)

    if not (folder / "baselines").is_dir():
        note("record", session(folder, engine, args.tier, "--update-baselines"))
    (stored,) = [
        c for c in shelf.readable(shelf.scan(folder / "baselines")) if c.cell.context_tokens == args.contexts[-1]
    ]
    ttft_s = float(np.exp(np.mean([boot.logs(0) for boot in stored.boots])))
    for _ in range(args.repeat):
        note("off", session(folder, make(folder / "off", engine, off=True), args.tier))
    for share in args.slow:
        slow = make(folder / f"slow-{share}", engine, delay_s=share * ttft_s)
        for _ in range(args.repeat):
            note(f"slow +{share:.0%}", session(folder, slow, args.tier))
    for _ in range(args.sessions):
        note("A/A", session(folder, engine, args.tier))
    for tier in args.others:
        more = ("--record-baselines", "--kv-boots", str(args.other_boots))
        note(f"boots of {tier}", session(folder, engine, tier, *more))
    table = pd.DataFrame(results)
    print(table.groupby(["kind", "kv_verdict"]).size().to_string())
    print(spread(folder).to_string(index=False))


if __name__ == "__main__":
    main()
