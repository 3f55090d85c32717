"""Explain in a line and a table which part of TTFT moved between a baseline and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_kvcache.proof.breakdown import GPU_FIGURES, PARTS, Figures

#: Parts that moved by less than these shares, of the old TTFT and of the change of TTFT, are not named.
_NAMED, _NAMED_OF_CHANGE = 0.05, 0.1
#: Hits that moved by less than this (share of prompt tokens) are unchanged.
_SAME_HITS = 0.01
#: SM clocks that moved by less than this share are unchanged.
_SAME_CLOCK = 0.02


@dataclass(frozen=True)
class Explanation:
    """Why TTFT moved.

    Args:
        summary: The explanation in one line.
        parts: Means of each part in the baseline and now (s), by the part's name for people.
        unexplained_s: The change of TTFT that no part accounts for (s).
        client: How late the client sent, which is no part of TTFT; "" where that is not known.
        gpus: Clocks of busy GPUs and what limited them; "" where they are not known of both sides.
    """

    summary: str
    parts: dict[str, tuple[float, float]]
    unexplained_s: float
    client: str = ""
    gpus: str = ""

    def lines(self) -> list[str]:
        """Return the summary and a line for each part."""
        width = max((len(name) for name in self.parts), default=0)
        shown = [
            f"  {name:<{width}}  {_ms(old)} -> {_ms(new)} ms ({(new - old) * 1e3:+.1f})"
            for name, (old, new) in self.parts.items()
        ]
        rest = f"  {'unexplained':<{width}}  {self.unexplained_s * 1e3:+.1f} ms"
        return [self.summary, *shown, rest, *(f"  {line}" for line in (self.gpus, self.client) if line)]

    def facts(self) -> dict[str, Any]:
        """Return the explanation for `run.json`; times are in seconds."""
        return {
            "summary": self.summary,
            "parts_s": {name: list(pair) for name, pair in self.parts.items()},
            "unexplained_s": self.unexplained_s,
            "client": self.client,
            "gpus": self.gpus,
        }


def explain(baseline: Figures, now: Figures) -> Explanation | None:
    """Return where the time went, None where either side lacks the figures.

    Args:
        baseline: Figures of the baseline, means over its boots: `components`, `Ledger.as_figures`, estimates.
        now: The same figures of this session.
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
    least = max(_NAMED * old, _NAMED_OF_CHANGE * abs(new - old))
    said = _named(parts, moved, least, worse=new >= old)
    said += _speed(baseline, now)
    said += _clock(baseline, now)
    said += [_hits(baseline, now)]
    if abs(rest) > least:
        said.append(f"{rest * 1e3:+.0f} ms unexplained")
    change = f"{new / old - 1:+.0%}" if old > 0 else f"{_ms(old)} -> {_ms(new)} ms"
    summary = f"mean TTFT {change}: " + "; ".join(part for part in said if part)
    return Explanation(summary, parts, rest, _client(baseline, now), _gpus(baseline, now))


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
    if "share_unsplit" in baseline or "share_unsplit" in now:
        baseline, now = _unsplit(baseline), _unsplit(now)
        names = {"share_device": "device", "share_unsplit": "L1+L2", "share_lost": "lost"}
    if not any(key in baseline and key in now for key in names):
        names = {"cached_share": "all"}
    known = {key: name for key, name in names.items() if key in baseline and key in now}
    if not known:
        return ""
    changed = [
        f"{name} {baseline[key]:.0%} -> {now[key]:.0%}"
        for key, name in known.items()
        if abs(now[key] - baseline[key]) > _SAME_HITS
    ]
    return "hits: " + ", ".join(changed) if changed else "hits unchanged"


def _clock(baseline: Figures, now: Figures) -> list[str]:
    """Return the SM clock that moved more, the mean or that of the slowest GPU; nothing where neither moved."""
    keys = [key for key in ("gpu_sm_clock_mhz", "gpu_sm_clock_slowest_mhz") if baseline.get(key) and key in now]
    moved = [(abs(now[key] / baseline[key] - 1), key) for key in keys]
    share, key = max(moved, default=(0.0, ""))
    if share <= _SAME_CLOCK:
        return []
    which = "SM clock" if key == "gpu_sm_clock_mhz" else "SM clock of the slowest GPU"
    return [f"{which} {baseline[key]:.0f} -> {now[key]:.0f} MHz"]


def _gpus(baseline: Figures, now: Figures) -> str:
    """Return the figures of the GPUs on both sides; they are medians and means while the GPUs were busy."""
    shown = []
    for key, text in GPU_FIGURES.items():
        if key in baseline and key in now:
            form = "{:.0%} -> {:.0%}" if key.endswith("_share") else "{:.0f} -> {:.0f}"
            shown.append(text.format(form.format(baseline[key], now[key])))
    return f"GPUs while busy: {', '.join(shown)}" if shown else ""


def _unsplit(figures: Figures) -> Figures:
    """Return figures in which L1 and L2 are one, since LMCache before 0.5.5 does not tell them apart."""
    levels = [figures[key] for key in ("share_l1", "share_l2", "share_unsplit") if key in figures]
    return {**figures, "share_unsplit": sum(levels)} if levels else figures


def _client(baseline: Figures, now: Figures) -> str:
    late = [figures.get("send_late_p99_s") for figures in (baseline, now)]
    if late[0] is None or late[1] is None:
        return ""
    return f"client: sent {late[0] * 1e3:.1f} -> {late[1] * 1e3:.1f} ms late (p99), which is no part of TTFT"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"
