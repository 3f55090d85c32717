"""Stopping early within a boot, at a whole round, and cutting the baseline to the same rounds.

A round is the time in which every user asks once. A boot is one replicate however long it runs: running on after the
noise within the boot is small beside that between boots buys nothing. With a within-boot SE of a third of the sd of a
boot, that sd grows by a factor of sqrt(1 + 1/9), 5 %, and no more.

Whether to stop is decided on spreads alone, never on the level of the estimate, so that it does not bias it (sequential
fixed-width stopping: Chow & Robbins, Ann. Math. Stat. 1965). Later rounds are not like earlier ones, since histories
grow: so the baseline's boots are cut to the same rounds before anything is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.estimate import WINSORIZED, log_ttft, of_users
from pytest_kvcache.verdict.interval import Floats
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS, Metric
from pytest_kvcache.verdict.spread import level

#: Fewer rounds, or sessions, than this have no standard error worth the name.
LEAST_ROUNDS, LEAST_SESSIONS = 4, 4
_SMALL = 1 / 3


def rounds_of(rows: pd.DataFrame, round_s: float) -> pd.Series[int]:
    """Return the round of each request, from 1: by when it was intended, not by when it could be sent.

    Args:
        rows: A row a request, as `load.records` has it.
        round_s: Seconds of a round: the gap between two questions of a user.

    Raises:
        ValueError: `round_s` is not positive.
    """
    if not round_s > 0:
        raise ValueError(f"a round of {round_s} s")
    number = np.floor(rows["intended_start_s"].to_numpy(dtype=np.float64) / round_s + 1e-9) + 1
    return pd.Series(number.astype(np.int64), index=rows.index, dtype="int64")


def prefix(rows: pd.DataFrame, *, rounds: int, round_s: float) -> pd.DataFrame:
    """Return the requests of the first `rounds` rounds."""
    return rows[rounds_of(rows, round_s) <= rounds]


def judged_figures(rows: pd.DataFrame) -> dict[str, float]:
    """Return the estimates of `DEFAULT_METRICS` in natural units, without those that the rows do not give.

    They are those of `estimate`, which needs the time of every token; this does not.
    """
    rows = of_users(rows)
    done = rows[rows["status"] == "ok"]
    if done.empty:
        return {}
    start = float(rows["actual_start_s"].min())
    elapsed = float(done["last_token_s"].max()) - start
    decode_s = float((done["last_token_s"] - done["first_token_s"]).sum())
    generated = float(done["generated_tokens"].sum())
    logs = log_ttft(rows)
    figures = {
        "ttft_geomean_s": float(np.exp(logs.mean())) if len(logs) else math.nan,
        "tokens_per_s": (float(done["prompt_tokens"].sum()) + generated) / elapsed if elapsed > 0 else math.nan,
        "decode_tokens_per_s": generated / decode_s if decode_s > 0 else math.nan,
    }
    return {key: value for key, value in figures.items() if 0 < value < math.inf}


def within_boot_errors(rows: pd.DataFrame, *, round_s: float) -> dict[str, float]:
    """Return the standard error, on the log scale, that each of `DEFAULT_METRICS` has within this boot.

    - TTFT: a mean over the requests of sessions, and requests of one session are not independent: sessions are the
      sample (the linearised error of a ratio of sums, log TTFT over requests; Cochran, "Sampling Techniques", 1977),
      widened for what was winsorized ((n - 1) / (n - 2g - 1); Dixon & Tukey, Technometrics 1968). Sessions differ by
      design too (an older one has a longer history), so this is an upper estimate and stops late rather than early.
    - Decode throughput: a ratio of sums too, tokens over seconds.
    - Processing speed: rounds are the sample (batch means: Law & Kelton, "Simulation Modeling and Analysis"), tokens
      of each round over the mean.

    Returns:
        By metric key; infinite where there are fewer than `LEAST_SESSIONS` sessions or `LEAST_ROUNDS` rounds.
    """
    rows = of_users(rows)
    done = rows[rows["status"] == "ok"]
    errors = {"ttft_geomean_s": _error_of_ttft(done, log_ttft(rows))}
    tokens = (done["prompt_tokens"] + done["generated_tokens"]).astype("float64")
    by_round: Floats = np.asarray(tokens.groupby(rounds_of(done, round_s)).sum(), dtype=np.float64)
    middle = float(by_round.mean()) if by_round.size else math.nan
    errors["tokens_per_s"] = _error_of_mean(by_round / middle, LEAST_ROUNDS) if middle > 0 else math.inf
    decode = (done["last_token_s"] - done["first_token_s"]).astype("float64")
    # Both over their means: of a ratio of 1 the error is the relative one, which is that of its logarithm.
    generated = done["generated_tokens"].astype("float64")
    errors["decode_tokens_per_s"] = (
        _ratio_error(generated / generated.mean(), decode / decode.mean(), done["user"])
        if decode.sum() > 0
        else math.inf  # answers of one token
    )
    return errors


def enough(rows: pd.DataFrame, *, rounds: int, round_s: float, spreads: Mapping[str, float]) -> bool:
    """Return whether the boot may stop after `rounds` whole rounds.

    Args:
        rows: Requests so far.
        rounds: Whole rounds that are over: every request of them has ended.
        round_s: Seconds of a round.
        spreads: sd of a boot on the log scale, by metric key, from baseline boots of full length. A metric that is not
            there, or whose boots do not spread, needs the whole run.
    """
    if rounds < LEAST_ROUNDS:
        return False
    errors = within_boot_errors(prefix(rows, rounds=rounds, round_s=round_s), round_s=round_s)
    return bool(spreads) and all(errors[key] < sd * _SMALL for key, sd in spreads.items())


def can_stop_early(metrics: Sequence[Metric]) -> bool:
    """Return whether a boot that is judged by these may end early.

    It may where a part of its rows tells them and their error. Quantiles, gaps between tokens and what counters tell
    need the whole run.
    """
    return set(metrics) <= set(DEFAULT_METRICS)


def spreads(tier: Sequence[StoredCell], metrics: Sequence[Metric], *, adjust_for: str = "") -> dict[str, float]:
    """Return the sd of a boot of the first cell, on the log scale, by metric key; as the decision has it.

    Raises:
        ValueError: The cells have not one degree of freedom.
    """
    return {m.key: level(tier, m, adjust_for=adjust_for).sd for m in metrics}


def cut(stored: StoredCell, requests: pd.DataFrame, metrics: Sequence[Metric], *, rounds: int) -> StoredCell:
    """Return the baseline as it would be had its boots stopped after `rounds` rounds.

    Args:
        stored: The cell; its `round_s` is used.
        requests: Its table of requests (`tables.unpack`): rows of all boots, `boot` counts from 0.
        metrics: What is judged.
        rounds: Whole rounds.

    Raises:
        ValueError: The cell has no rounds, or a boot has no figures in them.
    """
    if stored.round_s is None:
        raise ValueError("the baseline's workload has no rounds")
    boots = []
    for number, boot in enumerate(stored.boots):
        rows = prefix(requests[requests["boot"] == number], rounds=rounds, round_s=stored.round_s)
        figures = judged_figures(rows)
        if not all(metric.measured(figures) for metric in metrics):
            raise ValueError(f"boot {number + 1} of the baseline has no figures in its first {rounds} rounds")
        boots.append(boot.model_copy(update={"figures": figures}))
    return stored.model_copy(update={"boots": tuple(boots), "requests": None})


def _error_of_mean(values: Floats, least: int) -> float:
    return float(values.std(ddof=1)) / math.sqrt(values.size) if values.size >= least else math.inf


def _error_of_ttft(done: pd.DataFrame, logs: pd.Series[float]) -> float:
    requests = len(logs)
    drawn_in = int(WINSORIZED * requests)
    if requests < 2 * drawn_in + 2:
        return math.inf
    widened = (requests - 1) / (requests - 2 * drawn_in - 1)
    return widened * _ratio_error(logs, pd.Series(1.0, index=logs.index), done["user"][logs.index])


def _ratio_error(above: pd.Series[float], below: pd.Series[float], users: pd.Series[int]) -> float:
    """Return the standard error of sum(above) / sum(below), with sessions as the sample."""
    tops, bottoms = above.groupby(users).sum(), below.groupby(users).sum()
    count = len(tops)
    if count < LEAST_SESSIONS or not bottoms.sum() > 0:
        return math.inf
    residual = (tops - tops.sum() / bottoms.sum() * bottoms).to_numpy(dtype=np.float64)
    return float(np.sqrt((residual**2).sum() / (count - 1) / count) / bottoms.mean())
