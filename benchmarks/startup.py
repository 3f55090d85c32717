"""What the plugin costs a test suite that does not use it: import, collection and a run of many trivial tests.

    python -m benchmarks.startup [--tests 5000] [--runs 15] [--cases import collect run]

Every command is a process of its own. The commands of a case run in turn (A B C, A B C, …) after one uncounted turn
that fills the caches of compiled modules, so that a machine whose speed drifts is the same for all of them. The time is
the processor time of the whole process as the kernel accounts for it; the wall clock is shown too, and is noisier on a
shared machine. Differences and ratios are taken turn by turn, and their median is printed with the middle half of them.

The plugin is compared with the same environment without it (`-p no:kvcache`); what pytest-benchmark costs, which the
plugin brings along, is told apart (`-p no:kvcache` against `-p no:kvcache -p no:benchmark`).
"""

from __future__ import annotations

import argparse
import itertools
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS_OF_A_FILE = 100
WITHOUT = ("-p", "no:kvcache")
NEITHER = (*WITHOUT, "-p", "no:benchmark")


@dataclass(frozen=True)
class Spent:
    """What one process took.

    Args:
        cpu_s: Processor time, of user and system.
        wall_s: From its start to its end.
    """

    cpu_s: float
    wall_s: float


CPU, WALL = operator.attrgetter("cpu_s"), operator.attrgetter("wall_s")


def make_project(folder: Path, tests: int) -> None:
    """Write trivial tests, a hundred a file, and an ini file that makes `folder` the root."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for number, first in enumerate(range(0, tests, TESTS_OF_A_FILE)):
        names = range(first, min(first + TESTS_OF_A_FILE, tests))
        text = "\n\n\n".join(f"def test_{name}():\n    pass" for name in names)
        (folder / f"test_{number}.py").write_text(text + "\n")


def spend(command: Sequence[str], folder: Path) -> Spent:
    """Run one process and return what it took.

    Raises:
        SystemExit: It failed.
    """
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read().decode()[-2000:]}")
    return Spent(usage.ru_utime + usage.ru_stime, wall_s)


def in_turn(commands: dict[str, Sequence[str]], folder: Path, runs: int) -> dict[str, list[Spent]]:
    """Run each command `runs` times, in turn, after one turn that does not count."""
    spent: dict[str, list[Spent]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            one = spend(command, folder)
            if turn:
                spent[name].append(one)
    return spent


def cases(python: str) -> dict[str, dict[str, Sequence[str]]]:
    """Return the commands of each case by name; later ones lack what earlier ones have."""
    pytest = (python, "-m", "pytest", "-q")
    return {
        "import": {
            "plugin": (python, "-c", "import pytest_kvcache.plugin"),
            "pytest": (python, "-c", "import pytest"),
        },
        **{
            case: {
                "with the plugin": (*pytest, *more),
                "without it": (*pytest, *more, *WITHOUT),
                "without pytest-benchmark too": (*pytest, *more, *NEITHER),
            }
            for case, more in (("collect", ("--collect-only",)), ("run", ()))
        },
    }


def compare(more: list[Spent], less: list[Spent], of: Callable[[Spent], float]) -> str:
    """Return difference and ratio, turn by turn: the median, and the middle half in brackets."""
    pairs = [(of(a), of(b)) for a, b in zip(more, less, strict=True)]
    low, middle, high = statistics.quantiles([(a - b) * 1000 for a, b in pairs], n=4)
    ratio = statistics.median(a / b for a, b in pairs)
    return f"{middle:+6.1f} ms ({low:+.1f} to {high:+.1f}), ratio {ratio:.3f}"


def main() -> None:
    """Measure the cases that were asked for and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=5000, help="trivial tests in the project (default: 5000)")
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each command (default: 15)")
    parser.add_argument(
        "--cases", nargs="+", default=["import", "collect", "run"], choices=["import", "collect", "run"]
    )
    parser.add_argument(
        "--python", default=sys.executable, help="of an environment with the plugin (default: this one)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder, args.tests)
        for case, commands in cases(args.python).items():
            if case not in args.cases:
                continue
            spent = in_turn(commands, folder, args.runs)
            print(
                f"{case} ({args.runs} runs of each, {args.tests} tests)"
                if case != "import"
                else f"{case} ({args.runs})"
            )
            for command, runs in spent.items():
                cpu_ms, wall_ms = (1000 * statistics.median(map(of, runs)) for of in (CPU, WALL))
                print(f"  {command:30} cpu {cpu_ms:7.1f} ms, wall {wall_ms:7.1f} ms (medians)")
            for more, less in itertools.pairwise(spent):
                print(f"  {more} against {less}:")
                print(f"    cpu  {compare(spent[more], spent[less], CPU)}")
                print(f"    wall {compare(spent[more], spent[less], WALL)}", flush=True)


if __name__ == "__main__":
    main()
