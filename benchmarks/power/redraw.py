"""What would sessions have said of boots that were measured? Sessions drawn from them, judged by `decide` itself.

    python -m benchmarks.power.redraw BASELINES [--profile NAME] [--draws 1000] [--worse 0.15 0.30 0.50]

Of the boots of each cell, `baseline_boots` of its profile are drawn as a baseline and as many more as the rules look at
as a session, all different, without regard to when they were taken. In turn: nothing changed, and the first metric that
is judged (TTFT, or `tier` where there are yardsticks) worse by a share in every boot of the session. What the hour of
the machine does is in both, so that this tells the spread of boots and not that of days; and so few boots are drawn
from that sessions are alike. Where all boots make no more than one session, that is said instead.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pytest_kvcache.baselines import files
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.verdict.cells import StoredBoot, StoredCell
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, BootPair, decide_pairs
from pytest_kvcache.verdict.procedure import Boot, Evidence, decide

SEED = 20261130


def worse(boot: StoredBoot | Boot, metric: Metric, by: float) -> Boot:
    """Return a measured boot as a new one that is worse in a metric by a share."""
    return Boot({**boot.figures, metric.key: metric.natural(metric.of(boot.figures) + math.log1p(by))}, boot.canary)


def session(cell: StoredCell, new: Sequence[StoredBoot], by: float, *, family: int, policy: Policy) -> tuple[str, int]:
    """Return what a session comes to that looks at its boots one by one, and how many it took."""
    boots: list[Boot] = []
    for boot in new:
        boots.append(worse(boot, policy.metrics[0], by))
        evidence = Evidence(boots, cell.comparability, cell.workload)
        verdict = decide(evidence, cell, family=family, policy=policy)
        if verdict.status != "needs-boot":
            return verdict.status, len(boots)
    raise AssertionError("the last look decides")


def drawn(
    cell: StoredCell, *, baseline_boots: int, draws: int, shares: Sequence[float], family: int, policy: Policy
) -> Iterator[dict[str, str]]:
    """Yield a row for each share that the first metric is worse by: how sessions ended, and the boots that they took.

    Args:
        cell: With more boots than a baseline and a session have.
        baseline_boots: K.
        draws: Sessions of each row; the same draws in all rows.
        shares: By which the first metric of the session is worse.
        family: Declared gates.
        policy: The rules of the profile.

    Raises:
        ValueError: There are no more boots than make one session.
    """
    if len(cell.boots) <= baseline_boots + policy.looks:
        raise ValueError(
            f"{cell.address}: {len(cell.boots)} boots make one session of {baseline_boots} and {policy.looks}"
        )
    for share in shares:
        random = np.random.default_rng(SEED)
        ends: Counter[str] = Counter()
        took = 0
        for _ in range(draws):
            order = [cell.boots[at] for at in random.permutation(len(cell.boots))]
            kept = cell.model_copy(update={"boots": tuple(order[:baseline_boots])})
            new = order[baseline_boots : baseline_boots + policy.looks]
            status, boots = session(kept, new, share, family=family, policy=policy)
            ends[status] += 1
            took += boots
        row: dict[str, str] = {
            "cell": str(cell.address),
            "boots": str(len(cell.boots)),
            "K": str(baseline_boots),
            policy.metrics[0].short: f"{share:+.0%}",
        }
        yield row | _shares(ends, draws) | {"boots a session": f"{took / draws:.2f}"}


def against(
    pairs: Sequence[BootPair],
    *,
    draws: int,
    shares: Sequence[float],
    family: int,
    policy: Policy,
) -> Iterator[dict[str, str]]:
    """Yield a row for each share by which B is worse than A, as `--kv-against` would have told it.

    Args:
        pairs: Of neighbours, more than a session has; which boot of one is A is drawn too.
        draws: Sessions of each row; the same draws in all rows.
        shares: By which the first metric of B is worse.
        family: Declared gates.
        policy: The rules of the profile.

    Raises:
        ValueError: There are no more pairs than make one session.
    """
    looks = PAIRS_AT_LOOK[: policy.looks]
    if len(pairs) <= looks[-1]:
        raise ValueError(f"{len(pairs)} pairs make one session of {looks[-1]}")
    for share in shares:
        random = np.random.default_rng(SEED)
        ends: Counter[str] = Counter()
        took = 0
        for _ in range(draws):
            chosen = [pairs[at] for at in random.permutation(len(pairs))[: looks[-1]]]
            turned = [BootPair(p.b, p.a) if random.random() < 0.5 else p for p in chosen]
            new = [BootPair(p.a, worse(p.b, policy.metrics[0], share)) for p in turned]
            for count in looks:
                told = decide_pairs({0: new[:count]}, family=family, policy=policy, another_block=count < looks[-1])[0]
                if told.status != "needs-boot":
                    break
            ends[told.status] += 1
            took += told.pairs
        row = {"A/B": f"{len(pairs)} pairs", policy.metrics[0].short: f"{share:+.0%}"}
        yield row | _shares(ends, draws) | {"pairs a session": f"{took / draws:.2f}"}


def _shares(ends: Counter[str], draws: int) -> dict[str, str]:
    return {status: f"{ends[status] / draws:.1%}" for status in ("pass", "regressed", "inconclusive", "improved")}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baselines", type=Path, help="folder, with the kvcache.toml of its profiles beside it")
    parser.add_argument("--profile")
    parser.add_argument("--draws", type=int, default=1000, help="sessions of each row")
    parser.add_argument(
        "--worse", type=float, nargs="*", default=[0.15, 0.30, 0.50], help="the first metric by these shares"
    )
    parser.add_argument("--boots", type=int, help="K, in place of the profile's")
    args = parser.parse_args()
    known = catalogue.load(args.baselines.parent / "kvcache.toml")
    rows: list[dict[str, str]] = []
    for cell in files.readable(files.scan(args.baselines)):
        if args.profile not in {None, cell.cell.profile}:
            continue
        profile = known.profiles[cell.cell.profile]
        policy = profile.policy
        try:
            rows += drawn(
                cell,
                baseline_boots=args.boots or profile.rules.baseline_boots,
                draws=args.draws,
                shares=[0.0, *args.worse],
                family=known.declared_gates(profile),
                policy=policy,
            )
        except ValueError as error:
            print(error)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
