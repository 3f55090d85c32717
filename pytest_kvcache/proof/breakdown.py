"""Split TTFT, the time to the first token, into parts by rows and counters.

By the definition of the rows, TTFT of an answer is `residual + queue + first token`. The queue time is vLLM's, from the
scheduler's first sight of the request to the start of the work on it; the first token's time goes from there to the
first token; the residual is the rest of the TTFT that the client measures.

vLLM's own TTFT (`vllm:time_to_first_token_seconds`) counts from before vLLM tokenizes the prompt to the arrival of the
first token in its API process, and so splits the residual: the excess of vLLM's TTFT over queue and first token is
vLLM's front end, and the excess of the client's TTFT over vLLM's is the way there and back. The client's own work is in
neither, since its time stamps are those of the kernel.

A tier's time is in the part in which the tier loads:

- LMCache as a server loads before the work on a request starts: lookup and load are part of vLLM's queue time. vLLM
  measures the lookup (`vllm:lmcache_mp_lookup_duration_seconds`), which lasts until KV from L2 is in L1; so the rest of
  the queue time is the copy from L1 to the device and waiting for other requests.
- LMCache inside vLLM loads at the start of the work: `lmcache:time_to_retrieve` is part of the first token's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pytest_kvcache.telemetry.counters import Counters, total

#: The parts of TTFT by figure; their sum is the mean TTFT of the answers whose server told its times.
PARTS = {
    "part_outside_s": "rest: router, network, HTTP",
    "part_residual_s": "rest: router, network, HTTP, vLLM's front end",
    "part_frontend_s": "vLLM before its scheduler: tokenizing, waiting for a running step",
    "part_queue_s": "queue, and copy to the device",
    "part_lookup_s": "tier: lookup and load from L2",
    "part_load_s": "tier: load",
    "part_prefill_s": "prefill and first token",
}
#: The parts of each of the three times of a row, those from counters first.
_SPLITS = (
    ("part_frontend_s", "part_outside_s", "part_residual_s"),
    ("part_lookup_s", "part_queue_s"),
    ("part_load_s", "part_prefill_s"),
)
#: Figures of the GPUs while they were busy (`telemetry.gpu.summary.figures`).
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
    """Return the figures that an explanation needs, to be stored with the figures of a boot.

    Args:
        rows: Rows of the run, one for each request (`load.records`).
        counters: Growth of the counters by component.

    Returns:
        `part_*_s`: the parts of the mean TTFT (s), see `PARTS`; `part_ttft_s`: the mean TTFT itself, of all answers.
        `l2_load_bytes_per_s`: mean throughput of loads from L2, where there were any. The result is
        empty where no answer has all its times.
    """
    times = _times(rows)
    if times is None:
        return {}
    # Servers also count requests that are not in the rows, since the run ended early.
    counted = _sum(counters, f"{_VLLM_TTFT}_count")
    requests = counted or float((rows["status"] == "ok").sum())
    lookup = _sum(counters, "vllm:lmcache_mp_lookup_duration_seconds_sum") / requests
    load = _sum(counters, "lmcache:time_to_retrieve_sum") / requests
    # Both are means of clocks read one after the other, so a part may seem longer than its whole: it is cut to that.
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
    """Return the figures of `components` for a part of a run's requests, its first rounds.

    Rows have TTFT, queue and first token; the parts from counters keep their proportions, since counters are read only
    at the ends of a run. Hits are those that the answers tell, whatever their source.

    Args:
        figures: Figures of the whole run.
        rows: Rows of these requests.
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
