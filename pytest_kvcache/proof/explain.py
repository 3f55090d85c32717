"""Where the time to the first token goes, and which part of it moved between a baseline and now.

TTFT of an answer is, by the definition of the rows, `residual + queue + first token`: the client's remainder, vLLM's
time from the scheduler's first sight of the request to the start of its work, and from there to the first token. Where
a tier loads decides in which of the two its time is:

- LMCache beside vLLM loads before the request starts: lookup and load are part of vLLM's queue time. vLLM measures the
  lookup (`vllm:lmcache_mp_lookup_duration_seconds`), which lasts until what is in L2 has come to L1; so the rest of the
  queue time is the copy from L1 to the device and waiting for other requests.
- LMCache inside vLLM loads at the start of the work: `lmcache:time_to_retrieve` is part of the first token's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pytest_kvcache.proof.readings import Counters, total

#: The parts of TTFT by figure; together they are the mean TTFT of the answers whose server said its times.
PARTS = {
    "part_residual_s": "network, router, client, or waiting for a running step",
    "part_lookup_s": "tier: lookup and load from L2",
    "part_load_s": "tier: load",
    "part_queue_s": "queue, and copy to the device",
    "part_prefill_s": "prefill and first token",
}
_GB = 1e9
#: Changes smaller than this share of the old TTFT are not named.
_NAMED = 0.05
#: Hits that moved by less than this (share of prompt tokens) are unchanged.
_SAME_HITS = 0.01

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
    done = rows[rows["status"] == "ok"]
    times = done[["server_queue_s", "server_ttft_s", "residual_s"]].astype("float64").dropna()
    if times.empty:
        return {}
    queue, first, residual = (float(times[name].mean()) for name in times.columns)
    lookup = _mean(counters, "vllm:lmcache_mp_lookup_duration_seconds", len(done))
    load = _mean(counters, "lmcache:time_to_retrieve", len(done))
    # A lookup that is longer than the queue (both are means of clocks that are read one after the other) is all of it.
    lookup, load = min(lookup, queue), min(load, first)
    figures = {
        "part_ttft_s": float((done["first_token_s"] - done["actual_start_s"]).mean()),
        "part_residual_s": residual,
        "part_lookup_s": lookup,
        "part_load_s": load,
        "part_queue_s": queue - lookup,
        "part_prefill_s": first - load,
    }
    speed = _l2_speed(counters)
    return figures | ({"l2_load_bytes_per_s": speed} if speed else {})


@dataclass(frozen=True)
class Explanation:
    """What moved.

    Args:
        summary: One line.
        parts: By name for people: seconds before, seconds now.
        unexplained_s: Of the change of TTFT, what no part accounts for.
    """

    summary: str
    parts: dict[str, tuple[float, float]]
    unexplained_s: float

    def lines(self) -> list[str]:
        """Return the summary and a line for each part."""
        width = max((len(name) for name in self.parts), default=0)
        shown = [
            f"  {name:<{width}}  {_ms(old)} -> {_ms(new)} ms ({(new - old) * 1e3:+.1f})"
            for name, (old, new) in self.parts.items()
        ]
        return [self.summary, *shown, f"  {'unexplained':<{width}}  {self.unexplained_s * 1e3:+.1f} ms"]


def explain(baseline: Figures, now: Figures) -> Explanation | None:
    """Return where the time went, None where either side lacks the figures.

    Args:
        baseline: `components` and `Ledger.as_figures` of the baseline, means over its boots.
        now: The same of this session.
    """
    if "part_ttft_s" not in baseline or "part_ttft_s" not in now:
        return None
    parts = {
        text: (baseline.get(key, 0.0), now.get(key, 0.0))
        for key, text in PARTS.items()
        if baseline.get(key, 0.0) or now.get(key, 0.0)
    }
    old, new = baseline["part_ttft_s"], now["part_ttft_s"]
    moved = {name: b - a for name, (a, b) in parts.items()}
    rest = (new - old) - sum(moved.values())
    said = _named(parts, moved, _NAMED * old, worse=new >= old)
    said += _speed(baseline, now)
    said += [_hits(baseline, now)]
    if abs(rest) > _NAMED * old:
        said.append(f"{rest * 1e3:+.0f} ms unexplained")
    change = f"{new / old - 1:+.0%}" if old > 0 else f"{_ms(old)} -> {_ms(new)} ms"
    return Explanation(f"TTFT {change}: " + "; ".join(part for part in said if part), parts, rest)


def _named(
    parts: Mapping[str, tuple[float, float]], moved: Mapping[str, float], least: float, *, worse: bool
) -> list[str]:
    """Name the parts that moved with TTFT, the largest first."""
    big = [n for n, change in moved.items() if abs(change) > least and (change > 0) == worse]
    ordered: Sequence[str] = sorted(big, key=lambda name: -abs(moved[name]))
    return [f"{name} {_ms(parts[name][0])} -> {_ms(parts[name][1])} ms" for name in ordered] or ["no part stands out"]


def _speed(baseline: Figures, now: Figures) -> list[str]:
    old, new = (figures.get("l2_load_bytes_per_s", 0.0) for figures in (baseline, now))
    if not old or not new or 0.8 <= new / old <= 1.25:
        return []
    return [f"L2 throughput {old / 1e6:.0f} -> {new / 1e6:.0f} MB/s"]


def _hits(baseline: Figures, now: Figures) -> str:
    names = {"share_device": "device", "share_l1": "L1", "share_l2": "L2", "share_lost": "lost"}
    known = {key: name for key, name in names.items() if key in baseline and key in now}
    if not known:
        return ""
    changed = [
        f"{name} {baseline[key]:.0%} -> {now[key]:.0%}"
        for key, name in known.items()
        if abs(now[key] - baseline[key]) > _SAME_HITS
    ]
    return "hits: " + ", ".join(changed) if changed else "hits unchanged"


def _mean(counters: Mapping[str, Counters], name: str, requests: int) -> float:
    """Return seconds of a histogram for each answer, whether or not each one has an observation."""
    return sum(total(grown, f"{name}_sum") for grown in counters.values()) / requests if requests else 0.0


def _l2_speed(counters: Mapping[str, Counters]) -> float:
    name = "lmcache_mp_l2_load_throughput_GB_per_second"
    count = sum(total(grown, f"{name}_count") for grown in counters.values())
    if count:
        return _GB * sum(total(grown, f"{name}_sum") for grown in counters.values()) / count
    read = sum(total(grown, "lmcache:num_remote_read_bytes_total") for grown in counters.values())
    took_ms = sum(total(grown, "lmcache:remote_time_to_get_sum") for grown in counters.values())
    return read / (took_ms / 1e3) if took_ms else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"
