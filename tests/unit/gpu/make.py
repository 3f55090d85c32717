"""Samples of a GPU, once a second from 100 s on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_kvcache.proof.gpus import GpuLoad
from pytest_kvcache.telemetry.gpu.readings import Gpu, Readings, Sample, Span, Xid
from pytest_kvcache.telemetry.gpu.summary import GpuSummary, summarize

GPU = Gpu("4", "GPU-4", index=4, name="NVIDIA H100 80GB HBM3")
START_S = 100.0


def sample(second: int, *, uuid: str = GPU.uuid, **values: Any) -> Sample:
    """Return a sample of a busy, healthy GPU, but for `values`."""
    healthy: dict[str, Any] = {"utilization_gpu_percent": 90, "sm_clock_mhz": 1980, "clock_reasons": 0}
    return Sample(START_S + second, 1e9 + second, uuid, **(healthy | values))


def samples(masks: Sequence[int], **values: Any) -> tuple[Sample, ...]:
    """Return a sample for each of the clock reasons."""
    return tuple(sample(second, clock_reasons=mask, **values) for second, mask in enumerate(masks))


def summary(found: Sequence[Sample], *, xids: Sequence[Xid] = (), gpu: Gpu = GPU) -> GpuSummary:
    """Return what `gpu` did in a load that has all of `found`."""
    span = Span(3500, START_S, START_S + len(found))
    (each,) = summarize(Readings((gpu,), tuple(found), tuple(xids)), [span], until_s=span.end_s)
    return each


def load(found: Sequence[Sample], **more: Any) -> GpuLoad:
    """Return the same as it is judged."""
    return GpuLoad((summary(found, **more),))
