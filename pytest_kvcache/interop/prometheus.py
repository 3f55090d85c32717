"""Figures of loads as Prometheus text or OpenMetrics, and pushed to a Pushgateway."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from pytest_kvcache.endpoint.address import endpoint
from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop.boots import LeftLoad
from pytest_kvcache.interop.statistics import distributions
from pytest_kvcache.load.table import first_line

#: Bounds (s) of vLLM's own histograms of TTFT and of E2E latency, so that panels for those fit ours.
_TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
_ITL_BOUNDS = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_LABELS = ("run", "tier", "boot", "context_tokens")
_PREFIX = "kvcache_"
#: Endings that have a meaning of their own in OpenMetrics, and so cannot end the name of a gauge.
_RESERVED = ("_total", "_count", "_sum", "_bucket", "_info", "_created", "_gcount", "_gsum")
_UNITS = ("seconds", "bytes", "tokens")
_TIMEOUT_S = 30.0


class _Figures(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def registry(loads: Iterable[LeftLoad]) -> CollectorRegistry:
    """Return a registry with the figures of all loads.

    Each figure of `run.json` is a gauge, `kvcache_` and its name with units written out; TTFT, ITL and E2E latency of
    all requests are histograms. Labels are run, tier, boot and context_tokens; `kvcache_load_info` has label, model,
    hardware and versions.

    Raises:
        ResultsError: A table of requests cannot be read.
    """
    found = CollectorRegistry()
    found.register(_Figures(families(list(loads))))
    return found


def text(loads: Iterable[LeftLoad]) -> str:
    """Return the Prometheus text exposition (version 0.0.4) of all loads; raises as `registry` does."""
    return exposition.generate_latest(registry(loads)).decode()


def openmetrics_text(loads: Iterable[LeftLoad]) -> str:
    """Return the OpenMetrics text (version 1.0.0), which ends with `# EOF`; raises as `registry` does."""
    written: bytes = openmetrics.generate_latest(registry(loads))  # type: ignore[no-untyped-call]
    return written.decode()


def push(loads: Iterable[LeftLoad], url: str, *, job: str) -> None:
    """Replace all that a Pushgateway has of this job and machine by the figures of these loads.

    Args:
        loads: Of which runs.
        url: Of the Pushgateway; user and password in it are sent as a header.
        job: Name of the group.

    Raises:
        ConfigError: The address is none.
        ResultsError: The Pushgateway cannot be reached or refuses, or a table of requests cannot be read.
    """
    target = endpoint(url, where="--push")
    try:
        exposition.push_to_gateway(
            target.url,
            job=job,
            registry=registry(loads),
            grouping_key={"instance": socket.gethostname()},
            timeout=_TIMEOUT_S,
            handler=_authorizing(target.authorization),
        )
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"the Pushgateway did not take the figures: {first_line(error)}",
            where=target.url,
            todo="is it running there, and does it let you in?",
        ) from None


def _authorizing(authorization: str) -> Callable[..., Callable[[], None]]:
    """Return the client's own handler, with a header where there is something to authorize with."""

    def handler(
        url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        more = [("Authorization", authorization)] if authorization else []
        return exposition.default_handler(url, method, timeout, [*headers, *more], data)

    return handler


def families(loads: Sequence[LeftLoad]) -> list[Metric]:
    """Return the figures of all loads, a family for each name; raises as `registry` does."""
    gauges: dict[str, GaugeMetricFamily] = {}
    info = InfoMetricFamily(_PREFIX + "load", "What was measured.")
    started = GaugeMetricFamily(
        _PREFIX + "load_start_timestamp_seconds", "Start of the load, since 1970.", labels=_LABELS, unit="seconds"
    )
    histograms = {
        "ttft": (_TTFT_BOUNDS, "Time to first token."),
        "itl": (_ITL_BOUNDS, "Time between two streamed chunks."),
        "e2el": (_TTFT_BOUNDS, "Time from the send to the last token."),
    }
    spread = {
        name: HistogramMetricFamily(f"{_PREFIX}{name}_seconds", help_, labels=_LABELS, unit="seconds")
        for name, (_, help_) in histograms.items()
    }
    for load in loads:
        labels = [_text(load.run), _text(load.tier), _text(load.boot), str(load.context_tokens)]
        for key, value in sorted(load.facts.estimates.items()):
            name = metric_name(key)
            if name not in gauges:
                unit = next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")
                gauges[name] = GaugeMetricFamily(name, f"Figure {_text(key)} of run.json.", labels=_LABELS, unit=unit)
            gauges[name].add_metric(labels, value)
        if load.facts.load.started_at is not None:
            started.add_metric(labels, load.facts.load.started_at)
        info.add_metric([], dict(zip(_LABELS, labels, strict=True)) | _described(load))
        rows = distributions(load.rows())
        for name, values in (("ttft", rows.ttft_s), ("itl", rows.itl_s), ("e2el", rows.e2el_s)):
            spread[name].add_metric(labels, _buckets(values, histograms[name][0]), sum_value=float(values.sum()))
    return [info, started, *spread.values(), *gauges.values()]


def metric_name(key: str) -> str:
    """Return the metric's name of a figure: `ttft_p99_s` is `kvcache_ttft_p99_seconds`, `tokens_per_s` per second."""
    words = re.sub(r"[^a-zA-Z0-9_]", "_", key).split("_")
    full = [
        ("second" if at and words[at - 1] == "per" else "seconds") if word == "s" else word
        for at, word in enumerate(words)
    ]
    name = _PREFIX + "_".join(full)
    return name + "_value" if name.endswith(_RESERVED) or name in _HISTOGRAMS else name


_HISTOGRAMS = {f"{_PREFIX}{name}_seconds" for name in ("ttft", "itl", "e2el")}


def _described(load: LeftLoad) -> dict[str, str]:
    keys = load.facts.comparability
    described = {"label": load.facts.label, "model": keys.get("serving.model", "")}
    described["hardware"] = keys.get("hardware.gpus", "none")
    if described["hardware"] == "none":
        described["hardware"] = keys.get("hardware.cpu", "")
    described |= {f"version_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}": each for name, each in load.facts.versions.items()}
    if load.facts.imported:
        described["imported_from"] = load.facts.imported.tool
    return {name: _text(value) for name, value in described.items()}


def _buckets(values: np.ndarray, bounds: Sequence[float]) -> list[tuple[str, Any]]:
    counts = np.searchsorted(np.sort(values), bounds, side="right")
    every = [(str(float(bound)), int(count)) for bound, count in zip(bounds, counts, strict=True)]
    return [*every, ("+Inf", len(values))]


def _text(value: str) -> str:
    """Return a label's value as text that UTF-8 can hold."""
    return value.encode("utf-8", "replace").decode()
