"""What each GPU did during a load, from its samples (pure).

A sample is *busy* where a kernel ran in the period before it and the clocks are not those of an idle GPU. Clocks, power
and throttling are taken of busy samples only: an idle GPU lowers its clocks, and that says nothing of a request.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from pytest_kvcache.telemetry.gpu import reasons
from pytest_kvcache.telemetry.gpu.readings import Gpu, GpuProcess, Readings, Sample, Span, Users, Xid


@dataclass(frozen=True)
class GpuSummary:
    """One GPU over the samples of one or more loads; None where it does not say.

    Args:
        gpu: Which.
        samples: In those loads.
        busy: Of them, with a kernel running.
        utilization_percent: Mean over all.
        memory_used_bytes: The most.
        memory_total_bytes: In all.
        sm_clock_mhz: Median over busy ones.
        sm_clock_lowest_mhz: The lowest of the busy ones.
        memory_clock_mhz: Median over busy ones.
        power_w: Mean over busy ones.
        power_limit_w: The last one.
        temperature_c: The highest.
        reasons: In how many busy samples each reason was given for clocks that are not the highest.
        throttled: Busy samples with a reason of heat or power that is no limit of the board's.
        capped: Busy samples at the power cap or the board's limit.
        ecc_corrected: Memory errors that came since the sampler started.
        ecc_uncorrected: Of them, those that were not corrected.
        xids: Critical errors since then, in order; those of other MIG instances left out.
        lost: Why it could not be read any more, "" where it could.
        processes: All that computed on it in those loads, the run's own among them.
    """

    gpu: Gpu
    samples: int = 0
    busy: int = 0
    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    sm_clock_mhz: float | None = None
    sm_clock_lowest_mhz: int | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    throttled: int = 0
    capped: int = 0
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    xids: tuple[int, ...] = ()
    lost: str = ""
    processes: tuple[GpuProcess, ...] = ()

    def share(self, count: int) -> float:
        """Return a number of busy samples as a share of all busy ones."""
        return count / self.busy if self.busy else 0.0

    def facts(self) -> dict[str, Any]:
        """Return it for `run.json`."""
        return asdict(self)


def summarize(readings: Readings, spans: Iterable[Span], *, until_s: float) -> tuple[GpuSummary, ...]:
    """Return what each GPU did in some loads, and which errors it had from the first sample on.

    Errors count from the start of a boot: what they have damaged (weights, cached KV) is still used later.

    Args:
        readings: Of the boot.
        spans: The loads.
        until_s: Errors after this moment (CLOCK_MONOTONIC) are left out.
    """
    loads = list(spans)
    return tuple(_summary(readings, gpu, loads, until_s) for gpu in readings.gpus)


def _summary(readings: Readings, gpu: Gpu, loads: Sequence[Span], end_s: float) -> GpuSummary:
    until = [s for s in readings.samples if s.uuid == gpu.uuid and s.monotonic_s <= end_s]
    within = [s for s in until if any(load.has(s.monotonic_s) for load in loads)]
    busy = [s for s in within if _is_busy(s)]
    counts = Counter(name for s in busy for name in reasons.names(s.clock_reasons or 0))
    clocks = [s.sm_clock_mhz for s in busy if s.sm_clock_mhz is not None]
    return GpuSummary(
        gpu=gpu,
        samples=len(within),
        busy=len(busy),
        utilization_percent=_mean(s.utilization_gpu_percent for s in within),
        memory_used_bytes=_most(s.memory_used_bytes for s in within),
        memory_total_bytes=_most(s.memory_total_bytes for s in within),
        sm_clock_mhz=_median(clocks),
        sm_clock_lowest_mhz=min(clocks, default=None),
        memory_clock_mhz=_median(s.memory_clock_mhz for s in busy),
        power_w=_mean(s.power_w for s in busy),
        power_limit_w=next((s.power_limit_w for s in reversed(within) if s.power_limit_w is not None), None),
        temperature_c=_most(s.temperature_c for s in within),
        reasons=dict(counts.most_common()),
        throttled=_throttled(within),
        capped=sum(reasons.has_any(s.clock_reasons, reasons.CAPS) for s in busy),
        ecc_corrected=_grown([s.ecc_corrected for s in until]),
        ecc_uncorrected=_grown([s.ecc_uncorrected for s in until]),
        xids=tuple(
            x.number for x in readings.xids if x.uuid == gpu.uuid and x.monotonic_s <= end_s and _concerns(x, gpu)
        ),
        lost=next((s.error for s in until if s.error), ""),
        processes=_there([users for users in readings.users if users.uuid == gpu.uuid], loads),
    )


def _there(users: Sequence[Users], spans: Sequence[Span]) -> tuple[GpuProcess, ...]:
    """Return who was on a GPU in some loads: each line of `users` holds until the next."""
    found: dict[int, GpuProcess] = {}
    for number, each in enumerate(users):
        until_s = users[number + 1].monotonic_s if number + 1 < len(users) else math.inf
        if any(each.monotonic_s <= span.end_s and until_s > span.start_s for span in spans):
            found |= {process.pid: process for process in each.processes}
    return tuple(found.values())


def _concerns(xid: Xid, gpu: Gpu) -> bool:
    return xid.instance is None or gpu.instance is None or xid.instance == gpu.instance


def _is_busy(sample: Sample) -> bool:
    if sample.error or reasons.has_any(sample.clock_reasons, [reasons.IDLE]):
        return False
    return sample.utilization_gpu_percent is None or sample.utilization_gpu_percent > 0


def _throttled(samples: Sequence[Sample]) -> int:
    """Return how many busy samples show a throttle; a bare HW slowdown counts from its second sample in a row on."""
    found, before = 0, False
    for sample in samples:
        busy = _is_busy(sample)
        bare = busy and reasons.has_any(sample.clock_reasons, [reasons.HW_SLOWDOWN])
        found += busy and (reasons.has_any(sample.clock_reasons, reasons.THROTTLES) or (bare and before))
        before = bare
    return found


def _grown(counts: Sequence[int | None]) -> int | None:
    """Return by how much a counter grew; a fall is a driver that was loaded anew, and counts from zero."""
    known = [count for count in counts if count is not None]
    if not known:
        return None
    return sum(now - before if now >= before else now for before, now in itertools.pairwise(known))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def figures(summaries: Sequence[GpuSummary]) -> dict[str, float]:
    """Return what is stored with the figures of a boot, for explanations: means over the GPUs that say it.

    `gpu_sm_clock_mhz` is the mean of each GPU's median; `gpu_sm_clock_slowest_mhz` the lowest of them: a request waits
    for the GPU that it is on. The temperature is that of the hottest.
    """
    clocks = [s.sm_clock_mhz for s in summaries if s.sm_clock_mhz is not None]
    worked = [s for s in summaries if s.busy]
    found = {
        "gpu_sm_clock_mhz": _mean(clocks),
        "gpu_sm_clock_slowest_mhz": min(clocks, default=None),
        "gpu_memory_clock_mhz": _mean(s.memory_clock_mhz for s in summaries),
        "gpu_power_w": _mean(s.power_w for s in summaries),
        "gpu_temperature_c": _most(s.temperature_c for s in summaries),
        "gpu_throttled_share": _mean(s.share(s.throttled) for s in worked),
        "gpu_power_capped_share": _mean(s.share(s.capped) for s in worked),
    }
    return {key: float(value) for key, value in found.items() if value is not None}
