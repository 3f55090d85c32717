"""The parts of the time to the first token, from rows and counters.

TTFT of an answer is, by the definition of the rows, `residual + queue + first token`: the client's remainder, vLLM's
time from the scheduler's first sight of the request to the start of its work, and from there to the first token.

vLLM's own TTFT (`vllm:time_to_first_token_seconds`) counts from before it tokenizes to the arrival of the first token
in its API process. So it splits the residual: what it has beyond queue and first token is vLLM's front end, and what
the client has beyond it is the way there and back. The client has no part in it: its stamps are those of the kernel.

Where a tier loads decides in which part its time is:

- LMCache beside vLLM loads before the request starts: lookup and load are part of vLLM's queue time. vLLM measures the
  lookup (`vllm:lmcache_mp_lookup_duration_seconds`), which lasts until what is in L2 has come to L1; so the rest of the
  queue time is the copy from L1 to the device and waiting for other requests.
- LMCache inside vLLM loads at the start of the work: `lmcache:time_to_retrieve` is part of the first token's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pytest_kvcache.telemetry.counters import Counters, total

#: The parts of TTFT by figure; together they are the mean TTFT of the answers whose server said its times.
PARTS = {
    "part_outside_s": "rest: router, network, HTTP",
    "part_residual_s": "rest: router, network, HTTP, vLLM's front end",
    "part_frontend_s": "vLLM before its scheduler: tokenizing, waiting for a running step",
    "part_queue_s": "queue, and copy to the device",
    "part_lookup_s": "tier: lookup and load from L2",
    "part_load_s": "tier: load",
    "part_prefill_s": "prefill and first token",
}
#: What each of the row's three times is split into, the counted parts first.
_SPLITS = (
    ("part_frontend_s", "part_outside_s", "part_residual_s"),
    ("part_lookup_s", "part_queue_s"),
    ("part_load_s", "part_prefill_s"),
)
#: What GPUs did while busy (`telemetry.gpu.summary.figures`).
GPU_FIGURES = {
    "gpu_sm_clock_mhz": "SM clock {} MHz",
    "gpu_sm_clock_slowest_mhz": "of the slowest GPU {} MHz",
    "gpu_memory_clock_mhz": "memory clock {} MHz",
    "gpu_power_w": "power {} W",
    "gpu_temperature_c": "{} °C at most",
    "gpu_throttled_share": "throttled {} of busy samples",
    "gpu_power_capped_share": "at the power cap {}",
}
_GB = 1e9
_VLLM_TTFT = "vllm:time_to_first_token_seconds"

Figures = Mapping[str, float]


def components(rows: pd.DataFrame, counters: Mapping[str, Counters]) -> dict[str, float]:
    """Return the figures that an explanation needs, to be stored with those of a boot.

    Args:
        rows: A row a request (`load.records`).
        counters: By component, what its counters grew by.

    Returns:
        `part_*_s`: the parts of the mean TTFT (s), see `PARTS`; `part_ttft_s`: the mean TTFT itself, of all answers.
        `l2_load_bytes_per_s`: mean throughput of loads from L2, where there were any. Nothing where no answer has all
        its times.
    """
    times = _times(rows)
    if times is None:
        return {}
    # Servers count requests that are not in the rows too: those of a run that ended early.
    counted = _sum(counters, f"{_VLLM_TTFT}_count")
    requests = counted or float((rows["status"] == "ok").sum())
    lookup = _sum(counters, "vllm:lmcache_mp_lookup_duration_seconds_sum") / requests
    load = _sum(counters, "lmcache:time_to_retrieve_sum") / requests
    # A part that is longer than its whole (both are means of clocks that are read one after the other) is all of it.
    lookup, load = min(lookup, times.queue_s), min(load, times.first_s)
    figures = {
        "part_ttft_s": times.ttft_s,
        "part_lookup_s": lookup,
        "part_load_s": load,
        "part_queue_s": times.queue_s - lookup,
        "part_prefill_s": times.first_s - load,
    }
    if counted:
        inside = _sum(counters, f"{_VLLM_TTFT}_sum") / counted - times.queue_s - times.first_s
        frontend = min(max(inside, 0.0), times.residual_s)
        figures |= {"part_frontend_s": frontend, "part_outside_s": times.residual_s - frontend}
    else:
        figures["part_residual_s"] = times.residual_s
    speed = _l2_speed(counters)
    return figures | ({"l2_load_bytes_per_s": speed} if speed else {})


def breakdown_of_rows(figures: Figures, rows: pd.DataFrame) -> dict[str, float]:
    """Return the figures of `components` as they are in some of a run's requests, its first rounds.

    Rows have TTFT, queue and first token; what counters split them into keeps its proportion, since counters are read
    at the ends of a run only. Hits are those that the answers tell, whatever their source.

    Args:
        figures: Of the whole run.
        rows: Those requests.
    """
    times = _times(rows)
    if times is None or "part_ttft_s" not in figures:
        return {}
    found = {"part_ttft_s": times.ttft_s}
    for keys, now in zip(_SPLITS, (times.residual_s, times.queue_s, times.first_s), strict=True):
        whole = sum(figures.get(key, 0.0) for key in keys)
        if whole > 0:
            found |= {key: figures[key] / whole * now for key in keys if key in figures}
        else:
            found[keys[-1]] = now
    done = rows[rows["status"] == "ok"]
    found["cached_share"] = float(done["cached_tokens"].fillna(0).sum()) / float(done["prompt_tokens"].sum())
    kept = ("l2_load_bytes_per_s", "send_late_p99_s", *GPU_FIGURES)
    return found | {key: figures[key] for key in kept if key in figures}


@dataclass(frozen=True)
class _Times:
    """Means over answers (s), as the rows define them."""

    ttft_s: float
    residual_s: float
    queue_s: float
    first_s: float


def _times(rows: pd.DataFrame) -> _Times | None:
    done = rows[rows["status"] == "ok"]
    ttft = (done["first_token_s"] - done["actual_start_s"]).astype("float64")
    server = done[["server_queue_s", "server_ttft_s"]].astype("float64").dropna()
    if server.empty:
        return None
    queue, first = (float(server[name].mean()) for name in server.columns)
    return _Times(float(ttft.mean()), float(ttft[server.index].mean()) - queue - first, queue, first)


def _sum(counters: Mapping[str, Counters], name: str) -> float:
    return sum(total(grown, name) for grown in counters.values())


def _l2_speed(counters: Mapping[str, Counters]) -> float:
    name = "lmcache_mp_l2_load_throughput_GB_per_second"
    count = _sum(counters, f"{name}_count")
    if count:
        return _GB * _sum(counters, f"{name}_sum") / count
    took_ms = _sum(counters, "lmcache:remote_time_to_get_sum")
    return _sum(counters, "lmcache:num_remote_read_bytes_total") / (took_ms / 1e3) if took_ms else 0.0
