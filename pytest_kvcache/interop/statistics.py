"""Distributions of a load's requests, in seconds and tokens, which exports have in their own shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pytest_kvcache.load import records
from pytest_kvcache.verdict.estimate import of_users, time_per_output_token


@dataclass(frozen=True)
class Distributions:
    """What the finished requests of users took; yardsticks are left out. Each is an array without NaN.

    Args:
        sent: Requests that were sent.
        failed: Requests that were sent and ended in an error.
        incomplete: Requests that were under way when the run ended.
        prompt_tokens: Of each finished request.
        generated_tokens: Of each finished request.
        ttft_s: From the send to the first token.
        tpot_s: Time after the first token over the tokens after it; requests of one token have none.
        itl_s: All gaps between streamed chunks.
        e2el_s: From the send to the last token.
        normalized_tpot_s: E2E latency over all generated tokens.
        elapsed_s: From the first send to the last token; 0 where nothing finished.
    """

    sent: int
    failed: int
    incomplete: int
    prompt_tokens: np.ndarray
    generated_tokens: np.ndarray
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    itl_s: np.ndarray
    e2el_s: np.ndarray
    normalized_tpot_s: np.ndarray
    elapsed_s: float


def distributions(rows: pd.DataFrame) -> Distributions:
    """Return the distributions of a table of requests (docs/files.md)."""
    users = of_users(rows)
    sent = users[users["actual_start_s"].notna()]
    done = sent[sent["status"] == records.OK]
    cancelled = int((sent["status"] == records.CANCELLED).sum())
    e2el = (done["last_token_s"] - done["actual_start_s"]).astype("float64")
    generated = done["generated_tokens"].astype("float64")
    gaps = [np.diff(np.asarray(times, dtype="float64")) for times in done["token_times_s"]]
    return Distributions(
        sent=len(sent),
        failed=len(sent) - len(done) - cancelled,
        incomplete=cancelled,
        prompt_tokens=_finite(done["prompt_tokens"].astype("float64")),
        generated_tokens=_finite(generated),
        ttft_s=_finite((done["first_token_s"] - done["actual_start_s"]).astype("float64")),
        tpot_s=_finite(time_per_output_token(done)),
        itl_s=_finite(pd.Series(np.concatenate(gaps) if gaps else [], dtype="float64")),
        e2el_s=_finite(e2el),
        normalized_tpot_s=_finite(e2el / generated.where(generated > 0)),
        elapsed_s=float(done["last_token_s"].max() - sent["actual_start_s"].min()) if len(done) else 0.0,
    )


def _finite(values: pd.Series[float]) -> np.ndarray:
    array = values.to_numpy(dtype="float64", na_value=np.nan)
    return array[np.isfinite(array)]
