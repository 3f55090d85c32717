"""Sessions on slow links (`python -m lab.pnfs.slow`): what the exact gate and the explanation say of each.

The first session, on the link as it is, records a baseline of one boot, which decides where tokens and bytes come from.
Each session brings up a lab of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.pnfs import netem, perf
from lab.pnfs.lab import LABEL
from pytest_kvcache.errors import KvCacheError, ResultsError
from pytest_kvcache.proof.explain import explain

_DEFAULT = perf.REPOSITORY / ".kvcache" / "pnfs-lab" / "slow"


@dataclass(frozen=True)
class Ran:
    """What came of a session.

    Args:
        link: What its link did.
        declared: What the exact gate says.
        figures: Estimates of its load.
    """

    link: str
    declared: str
    figures: Mapping[str, Any]


def read(folder: Path, link: str) -> Ran:
    """Return what came of the session that wrote into a folder of its own.

    Raises:
        ResultsError: It left no verdict, or no figures.
    """
    verdicts, runs = sorted(folder.glob("*/verdicts.json")), sorted(folder.rglob("run.json"))
    if len(verdicts) != 1 or len(runs) != 1:
        raise ResultsError("has no verdict, or no load", where=str(folder), todo="see what its session printed")
    (cell,) = json.loads(verdicts[0].read_text(encoding="utf-8"))["cells"]
    figures = json.loads(runs[0].read_text(encoding="utf-8"))["estimates"]
    return Ran(link, "; ".join(cell["declared"] or cell["reasons"]), figures)


def table(sessions: Sequence[Ran]) -> list[str]:
    """Return what the gate and the explanation say of each link, the first one being what others are held against."""
    lines = [f"| link ({LABEL}) | exact gate | of the difference in TTFT |", "|---|---|---|"]
    for each in sessions:
        found = None if each is sessions[0] else explain(sessions[0].figures, each.figures)
        lines.append(f"| {each.link} | {each.declared} | {found.summary if found else '-'} |")
    return lines


def faults(sessions: Sequence[Ran]) -> list[str]:
    """Return the links of which the exact gate does not say that all is as it was."""
    return [each.link for each in sessions[1:] if not each.declared.startswith("pass: ")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sessions and print the table; return 1 where an exact gate did not pass."""
    parser = argparse.ArgumentParser(prog="python -m lab.pnfs.slow", description=f"{__doc__} ({LABEL})")
    parser.add_argument("--runs", type=Path, default=_DEFAULT, metavar="FOLDER", help="folder of runs (%(default)s)")
    parser.add_argument("--only", action="append", metavar="LINK", help="a link, beside the one as it is; repeatable")
    args = parser.parse_args(argv)
    links = [each.name for each in netem.ALL if not args.only or each.name in {"none", *args.only}]
    try:
        return measured(args.runs, links)
    except KvCacheError as error:
        sys.stderr.write(f"pnfs-lab: {error}\n")
        return 2


def measured(runs: Path, links: Sequence[str]) -> int:
    """Run a session on each link, the first of which records the baseline; print the table, and return the exit code.

    Raises:
        ResultsError: The folder of runs has some already, or a session left no verdict.
    """
    sessions = []
    for number, link in enumerate(links):
        own = runs / f"{number}-{link.replace(' ', '-').replace('/', '-')}"
        if own.exists():
            raise ResultsError("is there already", where=str(own), todo="remove it, or give another --runs")
        perf.main(
            [
                "--target=netem", f"--netem={link}", f"--kv-runs={own}",
                # Other work on the machine moves times and no tokens.
                f"--kv-baselines={runs / 'baselines'}", "--kv-allow-suspect" if link == "none" else "-rA",
            ]
        )  # fmt: skip
        sessions.append(read(own, link))
    for line in table(sessions):
        sys.stdout.write(f"{line}\n")
    return 1 if faults(sessions) else 0


if __name__ == "__main__":
    sys.exit(main())
