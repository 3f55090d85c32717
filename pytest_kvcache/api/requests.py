"""The table of requests as tests get it: what was measured of each request, and the times computed from that."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pytest_kvcache.verdict.estimate import time_per_output_token


def table(boots: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return a table of the requests of all boots, one row for each request.

    Args:
        boots: One table of requests for each boot, as `load.records` has it.

    Returns:
        The columns of `load.records.RequestRecord`, `boot` (from 1, in the order of `boots`), and in seconds `ttft_s`,
        `tpot_s` and `e2el_s`, missing where a request did not finish. docs/api.md describes all columns.
    """
    rows = pd.concat([each.assign(boot=number) for number, each in enumerate(boots, start=1)], ignore_index=True)
    done = rows[rows["status"] == "ok"]
    seconds = {
        "ttft_s": done["first_token_s"] - done["actual_start_s"],
        "tpot_s": time_per_output_token(done),
        "e2el_s": done["last_token_s"] - done["actual_start_s"],
    }
    return rows.assign(**{name: each.astype("float64").reindex(rows.index) for name, each in seconds.items()})
