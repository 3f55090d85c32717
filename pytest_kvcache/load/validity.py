"""Whether a run may be judged at all: what makes it invalid, and what makes it suspect (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pytest_kvcache.load import records
from pytest_kvcache.workload.base import Workload

#: Share of the requests that the client may send after the end of the run or not at all; one request always may be.
_SHORTFALL = 0.01
#: Answers of fewer streamed chunks tell nothing of bursts.
_BURST_CHUNKS = 8
#: Chunks that arrive within this (s) of each other came together.
_BURST_S = 0.001
#: Share of an answer's gaps, and of the answers, above which a stream comes in bursts.
_BURST_SHARE = 0.6


def faults(rows: pd.DataFrame, workload: Workload, facts: Mapping[str, Any]) -> list[str]:
    """Return why no verdict may rest on a run, an empty list where one may.

    Args:
        rows: One row for each request, with the fields of `RequestRecord`.
        workload: The workload of the run.
        facts: Facts of the load process (`WorkerOutcome.facts`).
    """
    found = [f"warm-up request failed: {error}" for error in facts.get("warmup_errors", [])]
    found += facts.get("lost_workers", [])
    if facts.get("interrupted"):
        found.append("the run was ended before its time")
    sent = rows[rows["actual_start_s"].notna()]
    if sent.empty:
        return [*found, "no request was sent"]
    found += _failures(sent, workload)
    found += _lateness(rows, sent, workload)
    done = sent[sent["status"] == records.OK]
    for intended, counted, what in (
        ("intended_prompt_tokens", "prompt_tokens", "prompts"),
        ("intended_generated_tokens", "generated_tokens", "answers"),
    ):
        known = done[done[intended].notna()]
        wrong = known[known[counted] != known[intended]]
        if not wrong.empty:
            first = wrong.iloc[0]
            found.append(
                f"{len(wrong)} of {len(known)} {what} have not the length that was asked for; the first, user "
                f"{first['user']} round {first['round']}: {first[counted]} tokens, not {first[intended]}"
            )
    return found


def suspicions(rows: pd.DataFrame, workload: Workload) -> list[str]:
    """Return what makes the times of a valid run doubtful, an empty list where nothing does."""
    return [*_buffered(rows), *_residual(rows, workload)]


def _buffered(rows: pd.DataFrame) -> list[str]:
    """Return whether tokens arrive in bursts, as behind a proxy that collects a stream before it passes it on.

    No engine decodes a token in less than a millisecond, and vLLM sends those that it does at once in one event.
    """
    long = rows[(rows["status"] == records.OK) & (rows["token_times_s"].map(len) >= _BURST_CHUNKS)]
    if long.empty:
        return []
    gaps = long["token_times_s"].map(lambda times: np.diff(np.asarray(times, dtype=np.float64)))
    at_once = gaps.map(lambda each: float((each < _BURST_S).mean()))
    bursts = long[at_once > _BURST_SHARE]
    if len(bursts) <= _BURST_SHARE * len(long):
        return []
    first = bursts.iloc[0]
    ttft, last = first["first_token_s"] - first["actual_start_s"], first["last_token_s"] - first["actual_start_s"]
    return [
        f"tokens arrive in bursts: {len(bursts)} of {len(long)} answers have most of their tokens less than "
        f"{_BURST_S * 1e3:g} ms apart (user {first['user']} round {first['round']}: {len(first['token_times_s'])} from "
        f"{ttft:.2f} to {last:.2f} s): a proxy or balancer collects the stream before it passes it on, so that TTFT "
        "and ITL are its own; turn its buffering off (nginx: proxy_buffering off; a header X-Accel-Buffering: no)"
    ]


def _residual(rows: pd.DataFrame, workload: Workload) -> list[str]:
    residual = rows["residual_s"].dropna()
    if residual.empty:
        return []
    p99, budget = float(residual.quantile(0.99)), workload.residual_budget_s
    if p99 <= budget:
        return []
    return [
        f"client TTFT less the server's own is {p99 * 1e3:.0f} ms (p99), budget {budget * 1e3:.0f} ms "
        "(workload.residual_budget_s): network, router or client took that long, or the engine was in a long step"
    ]


def _failures(sent: pd.DataFrame, workload: Workload) -> list[str]:
    failed = sent[sent["status"] != records.OK]
    if len(failed) / len(sent) <= workload.allowed_failures:
        return []
    kinds = ", ".join(f"{count} {status}" for status, count in failed["status"].value_counts().items())
    return [f"{len(failed)} of {len(sent)} requests failed ({kinds}); the first: {failed.iloc[0]['error']}"]


def _lateness(rows: pd.DataFrame, sent: pd.DataFrame, workload: Workload) -> list[str]:
    found = []
    late, budget = float((sent["actual_start_s"] - sent["due_s"]).quantile(0.99)), workload.send_late_budget_s
    if late > budget:
        found.append(
            f"the client sent late: p99 {late * 1e3:.0f} ms, budget {budget * 1e3:.0f} ms "
            "(workload.send_late_budget_s); give it a core of its own"
        )
    due = int((rows["due_s"] < workload.duration_s).sum())
    missing = due - int((sent["actual_start_s"] < workload.duration_s).sum())
    if missing > max(1.0, _SHORTFALL * due):
        found.append(
            f"the client delivered {(due - missing) / workload.duration_s:.2f} of "
            f"{due / workload.duration_s:.2f} requests/s: {missing} left after the end of the run or not at all"
        )
    return found
