"""What makes boots of the default profile more alike? Each lever alone, boots of all of them in turn.

    python -m benchmarks.power.levers [--dir DIR] [--boots 12] [--only NAME …] [--preload FILE …]
    python -m benchmarks.power.levers --table FILE

A round has one boot without a lever and one with each, so that a slow hour is in all of them; every second round goes
backwards. A lever is a program before vLLM or the router in an overlay, an environment variable, or a setting of the
kernel for the session; the plugin knows of none. Before and after each boot threads wake each other up, to see whether
that tells how slow the machine is. Needs root, for real-time priority and huge pages. Leave the machine alone
meanwhile; a run that was ended goes on where it stopped. DIR/boots.csv has a line for each boot, of which the second
command prints the tables again.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.power.engine import CONTEXT_TOKENS, Job, Lab
from benchmarks.power.overlay import make
from pytest_kvcache.baselines import files
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from pytest_kvcache.verdict.metrics import BY_NAME

NONE = "none"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: The number of a vLLM server, by the name that it is started with.
_OWN_CORE = '$(case "$*" in (*assistant@vllm-1*) echo 1;; (*) echo 0;; esac)'
#: Columns of the file: natural logarithms, more is worse.
_FIGURES = {
    "log_ttft": "ttft_geomean_s",
    "log_decode_s": "decode_tokens_per_s",
    "log_cpu_s": "cpu_s_per_request",
    "log_ttft_cold": "ttft_cold_geomean_s",
    "log_hit_over_cold": "ttft_hit_over_cold",
}
_CANARY = {"log_matmul_s": "matmul_s", "log_storage_read_s": "storage_read_s"}
_WAKEUP = "log_wakeup_s"
#: What may explain TTFT.
_COVARIATES = ("log_matmul_s", _WAKEUP, "log_cpu_s")


@dataclass(frozen=True)
class Lever:
    """Something that may make boots more alike.

    Args:
        name: Of the lever, and of its profile.
        server: Words of the shell before each vLLM.
        router: Words before the router.
        session: Words before pytest itself, which the client inherits.
        huge_pages: What the kernel is told of transparent huge pages while the session runs.
        workload: More keys of the profile's workload.
        yardsticks: Of the profile's workload; only one lever has any.
    """

    name: str
    server: str = ""
    router: str = ""
    session: tuple[str, ...] = ()
    huge_pages: str = ""
    workload: str = ""
    yardsticks: int = 0


def levers(preload: Sequence[Path]) -> list[Lever]:
    """Return all levers, that without any first.

    Args:
        preload: Libraries that vLLM's guide for CPUs asks for (tcmalloc, libiomp); without any, that lever is left out.
    """
    found = [
        Lever(NONE),
        Lever("servers pinned to cores of their own", server=f"taskset -c {_OWN_CORE}"),
        Lever(
            "client and router at real-time priority", server="chrt -o 0", router="chrt -r 1",
            session=("chrt", "-r", "1"),
        ),
        Lever("one router thread", router="env TOKIO_WORKER_THREADS=1"),
        Lever("huge pages always", huge_pages="always"),
        Lever("fixed address layout", server="setarch -R"),
        Lever("three times the warm-up", workload="warmup_requests = 12"),
        Lever("four yardsticks", yardsticks=4),
    ]  # fmt: skip
    if preload:
        found.append(Lever("tcmalloc and libiomp", server=f"env LD_PRELOAD={':'.join(map(str, preload))}"))
    return found


def profile_of(lever: Lever) -> str:
    """Return the name of a lever's profile."""
    return lever.name.replace(" ", "-")


def toml(all_of_them: Sequence[Lever], boots: int) -> str:
    """Return a configuration with a profile for each lever; yardsticks are a lever of their own."""
    return "\n".join(
        f"[profiles.{profile_of(lever)}]\n"
        'extends = "cpu-tiny"\n'
        f"[profiles.{profile_of(lever)}.workload]\n"
        f"context_tokens = [{CONTEXT_TOKENS}]\nyardsticks = {lever.yardsticks}\n{lever.workload}\n"
        f"[profiles.{profile_of(lever)}.rules]\n"
        f"baseline_boots = {boots}\n"
        for lever in all_of_them
    )


def wakeup_s(times: int = 1000, rest_s: float = 0.001) -> float:
    """Return how long it takes to wake a thread that sleeps, and to be woken by it (s): the median of many times."""
    there, back = os.pipe(), os.pipe()

    def answer() -> None:
        while word := os.read(there[0], 1):
            os.write(back[1], word)

    other = threading.Thread(target=answer)
    other.start()
    took = []
    for _ in range(times):
        time.sleep(rest_s)
        start = time.perf_counter()
        os.write(there[1], b"x")
        os.read(back[0], 1)
        took.append(time.perf_counter() - start)
    os.close(there[1])
    other.join()
    for descriptor in (there[0], *back):
        os.close(descriptor)
    return float(np.median(took))


@contextlib.contextmanager
def kernel(huge_pages: str) -> Iterator[None]:
    """Have the kernel use transparent huge pages as told, for the body."""
    if not huge_pages:
        yield
        return
    before = HUGE_PAGES.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    HUGE_PAGES.write_text(huge_pages, encoding="ascii")
    try:
        yield
    finally:
        HUGE_PAGES.write_text(before, encoding="ascii")


def boots(lab: Lab, all_of_them: Sequence[Lever]) -> pd.DataFrame:
    """Return a row a boot: its lever, its round, and the logarithms of what was measured."""
    cells = {each.cell.profile: each for each in files.readable(files.scan(lab.folder / "baselines"))}
    woken = pd.read_csv(lab.folder / "wakeups.csv").groupby("lever")["wakeup_s"].apply(list)
    rows = []
    for lever in all_of_them:
        stored = cells.get(profile_of(lever))
        for number, boot in enumerate(stored.boots if stored else ()):
            row: dict[str, object] = {"lever": lever.name, "round": number}
            row |= {name: BY_NAME[key].of(boot.figures) for name, key in _FIGURES.items() if key in boot.figures}
            row |= {name: math.log(boot.canary[key]) for name, key in _CANARY.items() if key in boot.canary}
            rows.append(row | {_WAKEUP: math.log(woken[lever.name][number])})
    return pd.DataFrame(rows).round(5)


def table(measured: pd.DataFrame) -> pd.DataFrame:
    """Return, for each lever, geometric means and the sd of a boot (log scale), whole and net of the round's mean."""
    columns = [name for name in _FIGURES if name in measured]
    apart = measured[columns] - measured.groupby("lever")[columns].transform("mean")
    net = apart - apart.groupby(measured["round"]).transform("mean")
    rows = []
    for lever, own in measured.groupby("lever", sort=False):
        row: dict[str, object] = {"lever": lever, "boots": len(own)}
        for name in columns:
            if own[name].notna().sum() > 1:
                others = f", net {net.loc[own.index, name].std():.1%}" if measured[name].count() > len(own) else ""
                row[name.removeprefix("log_")] = f"{math.exp(own[name].mean()):.4g}: {own[name].std():.1%}{others}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def explained(measured: pd.DataFrame) -> list[str]:
    """Return lines on what TTFT moves with, over all boots about the means of their levers."""
    names = ["log_ttft", *_COVARIATES]
    apart = measured[names] - measured.groupby("lever")[names].transform("mean")
    hours = apart.groupby(measured["round"]).mean()["log_ttft"]
    lines = [
        f"log TTFT about the means of levers: sd {apart['log_ttft'].std():.1%}; "
        f"means of rounds from {hours.min():+.2f} to {hours.max():+.2f}"
    ]
    for name in _COVARIATES:
        slope = float((apart[name] * apart["log_ttft"]).sum() / (apart[name] ** 2).sum())
        rest = (apart["log_ttft"] - slope * apart[name]).std()
        r = apart["log_ttft"].corr(apart[name])
        lines.append(f"{name.removeprefix('log_')}: r = {r:.2f}, slope {slope:.2f}, leaves sd {rest:.1%}")
    return lines


def main() -> None:
    """Measure, writing results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/levers"))
    parser.add_argument("--boots", type=int, default=12, help="of each lever")
    parser.add_argument("--only", nargs="*", default=[], help="names of levers, beside that without any")
    parser.add_argument("--preload", type=Path, nargs="*", default=[], help="tcmalloc and libiomp, where they are")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="boots that were taken: print their tables, boot nothing"
    )
    args = parser.parse_args()
    if args.table:
        show(pd.read_csv(args.table))
        return
    lab = Lab(args.dir.absolute(), setup.engine_path(home()))
    chosen = [each for each in levers(args.preload) if not args.only or each.name in (NONE, *args.only)]
    lab.prepare(boots=args.boots, epoch_s=24.0)
    (lab.folder / "kvcache.toml").write_text(toml(chosen, args.boots), encoding="utf-8")
    had = Counter(lab.done().drop_duplicates(["kind", "session"])["kind"])
    for at in range(args.boots):
        for lever in chosen if at % 2 == 0 else chosen[::-1]:
            if had[lever.name] > at:
                continue
            options = ("--tier", "pnfs", "--record-baselines", "--kv-boots", "1", "--kv-allow-suspect")
            words = {"python": lever.server, "vllm-router": lever.router}
            engine = make(lab.folder / "engines" / profile_of(lever), lab.engine, before=words)
            job = Job(lever.name, profile_of(lever), options, lambda engine=engine: engine)  # type: ignore[misc]
            before_s = wakeup_s()
            with kernel(lever.huge_pages):
                rows = lab.run(replace(job, before=lever.session))
            woken = {"lever": lever.name, "wakeup_s": float(np.sqrt(before_s * wakeup_s()))}
            path = lab.folder / "wakeups.csv"
            pd.DataFrame([woken]).to_csv(path, mode="a", index=False, header=not path.exists())
            print(lever.name, " ".join(sorted(set(rows["kv_verdict"].astype(str)))), flush=True)
    measured = boots(lab, chosen)
    measured.to_csv(lab.folder / "boots.csv", index=False)
    show(measured)


def show(measured: pd.DataFrame) -> None:
    """Print what boots tell."""
    print(table(measured).to_string(index=False))
    print(*explained(measured), sep="\n")


if __name__ == "__main__":
    main()
