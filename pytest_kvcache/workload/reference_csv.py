"""The CSV and the summary of LMCache's `multi-round-qa.py`, so that published numbers can be compared.

The source is that of `reference.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

COLUMNS = (
    "prompt_tokens",
    "generation_tokens",
    "ttft",
    "generation_time",
    "user_id",
    "question_id",
    "launch_time",
    "finish_time",
)


def csv_table(rows: pd.DataFrame, *, started_at: float) -> pd.DataFrame:
    """Return the finished requests in the columns of the original's CSV.

    As in the original, `question_id` counts a user's finished requests from 1, `generation_time` runs from the first
    token to the end, and the times of launch and end are on the wall clock (s since the epoch).

    Args:
        rows: One row for each request, with the fields of `RequestRecord`.
        started_at: Wall clock at the start of the run (s since the epoch).
    """
    done = rows[rows["status"] == "ok"].sort_values(["user", "actual_start_s"], kind="stable")
    table = pd.DataFrame(
        {
            "prompt_tokens": done["prompt_tokens"].astype("int64"),
            "generation_tokens": done["generated_tokens"].astype("int64"),
            "ttft": done["first_token_s"] - done["actual_start_s"],
            "generation_time": done["last_token_s"] - done["first_token_s"],
            "user_id": done["user"],
            "question_id": done.groupby("user").cumcount() + 1,
            "launch_time": done["actual_start_s"] + started_at,
            "finish_time": done["last_token_s"] + started_at,
        }
    )
    return table[list(COLUMNS)].reset_index(drop=True)


@dataclass(frozen=True)
class Summary:
    """The original's performance summary, by its formulas.

    Args:
        config_qps: Requests/s that the configuration asks for.
        actual_qps: Launched requests/s.
        processing_speed: Finished requests/s.
        input_tokens_per_s: Prompt tokens of finished requests a second.
        output_tokens_per_s: Generated tokens of finished requests a second.
        decode_tokens_per_s: Generated tokens divided by generation time, the mean over requests; NaN where all answers
            have one token.
        ttft_mean_s: Mean TTFT.
        total_s: Time that the rates refer to, from the start of the run to the end of the last request.
    """

    config_qps: float
    actual_qps: float
    processing_speed: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_mean_s: float
    total_s: float

    def lines(self) -> list[str]:
        """Return the summary in lines for people."""
        decode = "-" if math.isnan(self.decode_tokens_per_s) else f"{self.decode_tokens_per_s:.4f}"
        return [
            f"Config QPS: {self.config_qps:.4f} reqs/s",
            f"Actual QPS: {self.actual_qps:.4f} reqs/s",
            f"Processing speed: {self.processing_speed:.4f} reqs/s",
            f"Input tokens per second: {self.input_tokens_per_s:.4f} tokens/s",
            f"Output tokens per second: {self.output_tokens_per_s:.4f} tokens/s",
            f"Average generation throughput (per request): {decode} tokens/req/s",
            f"Average TTFT: {self.ttft_mean_s:.4f}s",
            f"Time range: {self.total_s:.2f}s",
        ]


def summary(table: pd.DataFrame, *, started_at: float, config_qps: float, pending: int = 0) -> Summary | None:
    """Return the summary of a CSV table, None where nothing finished.

    Args:
        table: As `csv_table` gives it, or read from the original's CSV.
        started_at: Wall clock at the start of the run (s since the epoch); the first launch where the start is not
            known.
        config_qps: Requests/s that the configuration asks for.
        pending: Requests that were launched and did not finish.
    """
    if table.empty:
        return None
    total = float(table["finish_time"].max()) - started_at
    # An answer of one token has no generation time: the original would print "inf" as the mean of all.
    generation = table["generation_time"].where(table["generation_time"] > 0)
    return Summary(
        config_qps=config_qps,
        actual_qps=(len(table) + pending) / total,
        processing_speed=len(table) / total,
        input_tokens_per_s=float(table["prompt_tokens"].sum()) / total,
        output_tokens_per_s=float(table["generation_tokens"].sum()) / total,
        decode_tokens_per_s=float((table["generation_tokens"] / generation).mean()),
        ttft_mean_s=float(table["ttft"].mean()),
        total_s=total,
    )
