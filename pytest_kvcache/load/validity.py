"""Whether a run may be judged at all: what makes it invalid, and what makes it suspect (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pytest_kvcache.load import clocks, records
from pytest_kvcache.workload.base import Workload

#: Share of the requests that the client may send after the end of the run or not at all; one request always may be.
_SHORTFALL = 0.01
#: Answers of fewer tokens, or of fewer streamed chunks, tell nothing of bursts.
_BURST_TOKENS = 8
#: Chunks that arrive within this (s) of each other came together; no engine takes less for a step.
_BURST_S = 0.001
#: Share of an answer's gaps, and of the answers, above which a stream comes in bursts.
_BURST_SHARE = 0.6
#: Most of an answer's time that its bursts may take: a stream that was held back waits most of the time.
_BURST_TIME = 0.25


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
    for node in facts.get("nodes", []):
        found += clocks.faults(
            node["address"],
            node["clock"],
            error_budget_s=workload.clock_error_budget_s,
            drift_budget_ppm=workload.clock_drift_budget_ppm,
        )
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
    return [*(_buffered(rows) or _shared_reads(rows, workload)), *_residual(rows, workload)]


def _shared_reads(rows: pd.DataFrame, workload: Workload) -> list[str]:
    """Return whether too many first tokens have the stamp of a later one, since one read returned both.

    An answer that was over sooner than an engine could give it is left out: its first token cannot be far off. One
    answer always may be so.
    """
    done = rows[(rows["status"] == records.OK) & (rows["token_times_s"].map(len) > 1)]
    took_s = done["last_token_s"] - done["actual_start_s"]
    done = done[took_s >= _BURST_S * done["token_times_s"].map(len)]
    shared = done[done["first_token_shared"]]
    if len(shared) <= max(1.0, workload.shared_reads_budget * len(done)):
        return []
    first = shared.iloc[0]
    return [
        f"the first token came in one read with later ones in {len(shared)} of {len(done)} answers (the first: user "
        f"{first['user']} round {first['round']}), more than {workload.shared_reads_budget:.0%} "
        "(workload.shared_reads_budget): their TTFT is the time of a later token, too long by one or more steps; "
        "either the client was without a processor (give it a core of its own), or server or proxy send tokens "
        "together"
    ]


def _buffered(rows: pd.DataFrame) -> list[str]:
    """Return whether answers were held back, as by a proxy that collects a stream before it passes it on.

    Either an answer of many tokens comes in one chunk, or its chunks come in bursts. No engine decodes in less than a
    millisecond a step, and vLLM sends the tokens of one step in one event.
    """
    done = rows[rows["status"] == records.OK]
    chunks, tokens = done["token_times_s"].map(len), done["generated_tokens"].fillna(0)
    told = done[(chunks >= _BURST_TOKENS) | ((chunks == 1) & (tokens >= _BURST_TOKENS))]
    answers = zip(told["actual_start_s"], told["token_times_s"], strict=True)
    held = told[[_is_held_back(start_s, times) for start_s, times in answers]]
    if len(held) <= _BURST_SHARE * len(told):
        return []
    first = held.iloc[0]
    ttft, last = first["first_token_s"] - first["actual_start_s"], first["last_token_s"] - first["actual_start_s"]
    example = f"user {first['user']} round {first['round']}: {first['generated_tokens']} tokens"
    if len(first["token_times_s"]) == 1:
        what = f"answers of many tokens arrive in one piece: {len(held)} of {len(told)} ({example} at {ttft:.2f} s)"
    else:
        what = (
            f"tokens arrive in bursts: {len(held)} of {len(told)} answers have most of their tokens less than "
            f"{_BURST_S * 1e3:g} ms apart ({example} from {ttft:.2f} to {last:.2f} s)"
        )
    return [
        f"{what}: a proxy, balancer or gateway collects the stream before it passes it on, so that TTFT and ITL are "
        "its own; turn its buffering off (nginx: proxy_buffering off; a header X-Accel-Buffering: no)"
    ]


def _is_held_back(start_s: float, token_times_s: Sequence[float]) -> bool:
    """Return whether an answer came in bursts between which it waited for longer than its tokens needed.

    A server that is merely quick, or that makes its answers up without a model, does not wait for that long.
    """
    times = np.asarray(token_times_s, dtype=np.float64)
    if times.size == 1:
        return True
    took_s = float(times[-1]) - start_s
    gaps = np.diff(times)
    together = gaps[gaps < _BURST_S]
    return bool(
        together.size > _BURST_SHARE * gaps.size
        and together.sum() <= _BURST_TIME * took_s
        and took_s >= _BURST_S * times.size
    )


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
