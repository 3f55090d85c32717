"""Which one figure of a boot's TTFTs repeats best? Several, on the same recorded requests.

    python -m benchmarks.power.estimators BASELINES [BASELINES …]

Reads the requests that baselines keep; nothing is run. `sd` is over the boots of a cell, so it has what boots differ by
and what a figure adds of its own. `stall` is by how much one request that hangs for ten seconds moves the figure: what
an estimator pays for repeating well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from pytest_kvcache.baselines import files, store
from pytest_kvcache.verdict.estimate import log_ttft

STALL_S = 10.0


def _plain(rows: pd.DataFrame) -> pd.Series[float]:
    done = rows[rows["status"] == "ok"]
    ttft_s = (done["first_token_s"] - done["actual_start_s"]).astype("float64")
    return pd.Series(np.log(ttft_s.to_numpy()), index=ttft_s.index)


def _session_medians(rows: pd.DataFrame) -> float:
    return float(_plain(rows).groupby(rows["user"]).median().mean())


#: Log of the figure, from a boot's requests.
ESTIMATORS: dict[str, Callable[[pd.DataFrame], float]] = {
    "median": lambda rows: float(_plain(rows).median()),
    "medians of sessions": _session_medians,
    "trimmed by 20 %": lambda rows: float(stats.trim_mean(_plain(rows), 0.2)),
    "winsorized (judged)": lambda rows: float(log_ttft(rows).mean()),
    "geometric mean": lambda rows: float(_plain(rows).mean()),
    "arithmetic mean": lambda rows: float(np.log(np.exp(_plain(rows)).mean())),
    "p90": lambda rows: float(_plain(rows).quantile(0.9)),
}


def stalled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the requests with one in the middle that waited for `STALL_S`."""
    finished = rows.index[rows["status"] == "ok"]
    moved = rows.copy()
    moved.loc[finished[len(finished) // 2], "first_token_s"] += STALL_S
    return moved


def compare(boots: list[pd.DataFrame]) -> pd.DataFrame:
    """Return a row an estimator: sd over boots, and what a stall moves on average; both on the log scale.

    Args:
        boots: The requests of each.
    """
    lines = []
    for name, figure in ESTIMATORS.items():
        values = np.array([figure(rows) for rows in boots])
        moved = np.array([figure(stalled(rows)) for rows in boots]) - values
        lines.append({"estimator": name, "sd": float(values.std(ddof=1)), "stall": float(moved.mean())})
    return pd.DataFrame(lines)


def main() -> None:
    """Print the table: a row an estimator, a column a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baselines", type=Path, nargs="+")
    args = parser.parse_args()
    columns, stalls = {}, []
    for root in args.baselines:
        for stored in files.readable(files.scan(root)):
            requests = store.read_requests(root, stored)
            found = compare([rows for _, rows in requests.groupby("boot")]).set_index("estimator")
            columns[f"{stored.address} ({len(stored.boots)})"] = found["sd"].map("{:.1%}".format)
            stalls.append(found["stall"])
    columns["stall of 10 s"] = pd.concat(stalls, axis=1).mean(axis=1).map("{:+.1%}".format)
    print(pd.DataFrame(columns).to_string())


if __name__ == "__main__":
    main()
