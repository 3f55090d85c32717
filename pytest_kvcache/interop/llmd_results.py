"""What of llm-d's benchmark report is measured, in the shapes that all of its versions share."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_kvcache.interop.statistics import Distributions

_PERCENTS = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
_QUANTILES = {f"p{percent}".replace(".", "p"): percent for percent in _PERCENTS}


def requests(found: Distributions) -> dict[str, Any]:
    """Return the counts of requests, and the lengths of their prompts and answers."""
    return {
        "total": found.sent,
        "failures": found.failed,
        "incomplete": found.incomplete,
        "input_length": _statistics("count", found.prompt_tokens) or {"units": "count", "mean": 0.0},
        "output_length": _statistics("count", found.generated_tokens) or {"units": "count", "mean": 0.0},
    }


def latency(found: Distributions) -> dict[str, Any]:
    """Return the times of requests; what no request has is left out."""
    every = {
        "time_to_first_token": _statistics("s", found.ttft_s),
        "normalized_time_per_output_token": _statistics("s/token", found.normalized_tpot_s),
        "time_per_output_token": _statistics("s/token", found.tpot_s),
        "inter_token_latency": _statistics("s/token", found.itl_s),
        "request_latency": _statistics("s", found.e2el_s),
    }
    return {name: each for name, each in every.items() if each}


def _statistics(units: str, values: np.ndarray) -> dict[str, Any]:
    """Return mean, spread and quantiles; empty where there is no value."""
    if not len(values):
        return {}
    quantiles = np.percentile(values, list(_QUANTILES.values()))
    return {
        "units": units,
        "mean": float(values.mean()),
        "stddev": float(values.std()),
        "min": float(values.min()),
        **{name: float(value) for name, value in zip(_QUANTILES, quantiles, strict=True)},
        "max": float(values.max()),
    }


def rate(units: str, amount: float, found: Distributions) -> dict[str, Any]:
    """Return an amount by the second."""
    return {"units": units, "mean": float(amount) / found.elapsed_s}


def tokens(found: Distributions) -> float:
    """Return the number of prompt and generated tokens."""
    return float(found.prompt_tokens.sum() + found.generated_tokens.sum())
