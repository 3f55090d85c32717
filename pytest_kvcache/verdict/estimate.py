"""From the table of requests to the figures of a run.

TTFT, TPOT, ITL and QPS are used as in vLLM's own benchmarks: TPOT is a request's time after its first token over the
tokens after that one, ITL the time between two streamed chunks. Processing speed follows the summary of LMCache's
`multi-round-qa.py`: finished requests over the time from the first start to the last answer. The reference article's
"aggregate system processing speed" is `tokens_per_s`, prompt plus generated tokens finished a second.

Decode throughput per request is there twice. `decode_mean_tokens_per_s` is that script's: the mean over requests of
generated tokens over the time after the first one. A request whose few tokens arrive in one burst dominates it: with
answers of 20 tokens it read 604 and 1,059 in runs whose other requests were at 120. So `decode_tokens_per_s`, which is
compared with baselines, is the ratio of the sums.

`ttft_geomean_s` is what boots are judged by: the geometric mean of TTFT over requests, winsorized (Dixon & Tukey,
Technometrics 1968): the longest and the shortest `WINSORIZED` of them count as the next one does. The logarithm makes
it a ratio scale (`verdict.metrics`), and one stalled request of fifty moves it by a few percent at most. Medians of
sessions are steadier against a stall and shakier without one: TTFT has two humps (a request that waits for another's
prefill, and one that does not), and where a median falls between them one request more or less moves it a long way
(docs/noise.md has both on the same boots).

Yardsticks, requests that no cache can have, are in none of these figures. They have their own: `ttft_cold_geomean_s`,
the same mean over them, is what the machine and the engine's arithmetic take; `ttft_hit_over_cold`, the mean over the
requests with hits over that of the yardsticks, is what the caches bring in the same minutes. Such a ratio is a control
variate with slope one (Kalibera & Jones compare by ratios for the same reason).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

Estimates = dict[str, float]

#: Share of a boot's requests at either end that count as the next one does; of fewer than twenty requests none.
WINSORIZED = 0.05
#: A request of whose prompt tokens this share was not computed is one with hits.
HIT_SHARE = 0.5


def estimate(rows: pd.DataFrame, *, duration_s: float) -> Estimates:
    """Return the figures of a run.

    Args:
        rows: A row a request, as `load.records` has it.
        duration_s: For how long requests were started.

    Returns:
        Counts (`scheduled`, `sent`, `finished`, `failed`), TTFT, ITL, TPOT, E2E latency (`e2el_*`, from the send to
        the last token) and throughput by name, unit last. Figures that
        need a finished request are absent where there is none.

        TTFT counts from the actual send; `ttft_from_intended_*` from when the schedule wanted it, so that a user who is
        late because the last answer was shows too. `user_late_p99_s` is that lateness, `send_late_p99_s` the client's
        own. `residual_*` is the client's TTFT less the server's queue time and TTFT (see `load.records`), absent where
        no answer tells those.
    """
    cold = _cold_figures(rows)
    rows = of_users(rows)
    sent = rows[rows["actual_start_s"].notna()]
    done = rows[rows["status"] == "ok"]
    result: Estimates = {
        "scheduled": float(len(rows)),
        "sent": float(len(sent)),
        "finished": float(len(done)),
        "failed": float(len(sent) - len(done)),
        "qps_asked": len(rows) / duration_s,
        "qps_delivered": len(sent) / duration_s,
        "send_late_p99_s": float((sent["actual_start_s"] - sent["due_s"]).quantile(0.99)),
        "user_late_p99_s": float((sent["due_s"] - sent["intended_start_s"]).quantile(0.99)),
    }
    if done.empty:
        return result | cold
    ttft = done["first_token_s"] - done["actual_start_s"]
    from_intended = done["first_token_s"] - done["intended_start_s"]
    residual = done["residual_s"].astype("float64").dropna()  # vLLM before 0.25 does not tell its own times
    elapsed = float(done["last_token_s"].max() - sent["actual_start_s"].min())
    prompt, generated = float(done["prompt_tokens"].sum()), float(done["generated_tokens"].sum())
    decode_s = (done["last_token_s"] - done["first_token_s"]).astype("float64")
    answers = done["generated_tokens"].astype("float64")
    gaps = pd.Series(np.concatenate([np.diff(times) for times in done["token_times_s"]]), dtype="float64")
    tpot = time_per_output_token(done)
    return (
        result
        | cold
        | {
            "ttft_mean_s": float(ttft.mean()),
            "ttft_p50_s": float(ttft.quantile(0.5)),
            "ttft_p90_s": float(ttft.quantile(0.9)),
            "ttft_p99_s": float(ttft.quantile(0.99)),
            "ttft_geomean_s": float(np.exp(log_ttft(rows).mean())),
            "ttft_from_intended_mean_s": float(from_intended.mean()),
            "ttft_from_intended_p99_s": float(from_intended.quantile(0.99)),
            **({f"residual_p{p}_s": float(residual.quantile(p / 100)) for p in (50, 99)} if len(residual) else {}),
            **_spread_of("itl", gaps),
            **_spread_of("tpot", tpot),
            **_spread_of("e2el", (done["last_token_s"] - done["actual_start_s"]).astype("float64")),
            "decode_tokens_per_s": generated / float(decode_s.sum()) if decode_s.sum() > 0 else float("nan"),
            "decode_mean_tokens_per_s": float((answers / decode_s.where(decode_s > 0)).mean()),
            "requests_per_s": len(done) / elapsed,
            "tokens_per_s": (prompt + generated) / elapsed,
            "prompt_tokens": prompt,
            "generated_tokens": generated,
            "cached_share": float(done["cached_tokens"].fillna(0).sum()) / prompt if prompt else 0.0,
        }
    )


def of_users(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without those of yardsticks, whose users are numbered below zero."""
    users: pd.DataFrame = rows[rows["user"] >= 0]
    return users


def _cold_figures(rows: pd.DataFrame) -> Estimates:
    """Return the figures that rest on yardsticks; none where there are none, or where no request had hits."""
    cold = log_ttft(rows[rows["user"] < 0])
    if cold.empty:
        return {}
    users = of_users(rows)
    hits = log_ttft(users[users["cached_tokens"].fillna(0) >= HIT_SHARE * users["prompt_tokens"]])
    figures = {"ttft_cold_geomean_s": float(np.exp(cold.mean())), "yardsticks": float(len(cold))}
    return figures | ({"ttft_hit_over_cold": float(np.exp(hits.mean() - cold.mean()))} if len(hits) else {})


def _spread_of(name: str, seconds: pd.Series[float]) -> Estimates:
    """Return mean and quantiles of `seconds`; each is NaN where there is none of them."""
    quantiles = {f"{name}_p{p}_s": float(seconds.quantile(p / 100)) for p in (50, 90, 99)}
    return {f"{name}_mean_s": float(seconds.mean()), **quantiles}


def time_per_output_token(done: pd.DataFrame) -> pd.Series[float]:
    """Return TPOT (s) of each finished request, by the row's index; requests of one token have none.

    Args:
        done: Rows of finished requests.
    """
    steps = done["generated_tokens"].astype("float64") - 1
    tpot = (done["last_token_s"] - done["first_token_s"]).astype("float64") / steps.where(steps > 0)
    return tpot.dropna()


def log_ttft(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the winsorized log TTFT (log of seconds) of each finished request, by the row's index.

    TTFT counts from the actual send. A TTFT of zero or less (a clock that was set) is left out: it has no logarithm.
    """
    done = rows[rows["status"] == "ok"]
    ttft = (done["first_token_s"] - done["actual_start_s"]).astype("float64")
    kept = ttft[ttft > 0]
    if kept.empty:
        return kept
    logs = np.log(kept.to_numpy())
    # As scipy.stats.mstats.winsorize does, whose import would be a third of the start of each session.
    ordered, count = np.sort(logs), int(WINSORIZED * len(logs))
    return pd.Series(np.clip(logs, ordered[count], ordered[-1 - count]), index=kept.index, dtype="float64")


@dataclass(frozen=True)
class Goodput:
    """Requests that met their limits.

    Args:
        share: Of the requests that were to be sent, 0 to 1.
        per_s: Requests a second of the time in which requests were started.
    """

    share: float
    per_s: float


def goodput(
    rows: pd.DataFrame,
    *,
    duration_s: float,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    e2el_s: float | None = None,
) -> Goodput:
    """Return how many requests finished within all limits that are given.

    As `vllm bench serve --goodput` counts it (after DistServe, Zhong et al., OSDI 2024): every limit must be met, and a
    failed request meets none; a request of one token has a TPOT of zero. Unlike there, a request that was never sent
    counts too.

    Args:
        rows: A row a request, as `load.records` has it.
        duration_s: For how long requests were started.
        ttft_s: Most seconds to the first token.
        tpot_s: Most seconds per output token after the first one, on average over the request.
        e2el_s: Most seconds from the send to the last token.
    """
    rows = of_users(rows)
    done = rows[rows["status"] == "ok"]
    taken = (
        (done["first_token_s"] - done["actual_start_s"], ttft_s),
        (time_per_output_token(done).reindex(done.index, fill_value=0.0), tpot_s),
        (done["last_token_s"] - done["actual_start_s"], e2el_s),
    )
    met = pd.Series(data=True, index=done.index)
    for seconds, limit in taken:
        if limit is not None:
            met &= seconds <= limit
    good = int(met.sum())
    return Goodput(share=good / len(rows) if len(rows) else 0.0, per_s=good / duration_s)
