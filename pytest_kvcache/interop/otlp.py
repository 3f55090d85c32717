"""Figures of loads as OTLP metrics: as JSON, and sent to a collector over HTTP by OpenTelemetry's own exporter.

Names, labels and buckets are those of the Prometheus export, so that a panel fits both ways. A point has the time at
which its load ended. OpenTelemetry is an extra, and imported only when something is exported.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import requests
from prometheus_client.core import Metric, Sample

from pytest_kvcache.endpoint.address import endpoint
from pytest_kvcache.errors import ConfigError, ResultsError
from pytest_kvcache.interop import prometheus
from pytest_kvcache.interop.boots import LeftLoad
from pytest_kvcache.redaction import redacted

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData

#: Default of `--job`: the resource's `service.name`.
JOB = "pytest-kvcache"
#: Where a collector takes metrics (OTLP/HTTP), below an address without a path.
_PATH = "/v1/metrics"
#: A request and its repetitions take no longer than this (s).
_TIMEOUT_S = 30.0
#: OTLP's units are those of UCUM.
_UNITS = {"seconds": "s", "bytes": "By", "tokens": "{token}"}
_EXTRA = "pip install 'pytest-kvcache[otlp]'"


def text(loads: Iterable[LeftLoad]) -> str:
    """Return one line of OTLP JSON with all loads, as a collector's file exporter writes and its receiver reads it.

    Raises:
        ConfigError: OpenTelemetry is not installed.
        ResultsError: A table of requests cannot be read.
    """
    found = data(loads, job=JOB)
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - an extra
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics  # noqa: PLC0415 - an extra

    # OTLP has the numbers of enumerations, not their names.
    return json.dumps(MessageToDict(encode_metrics(found), use_integers_for_enums=True), allow_nan=False) + "\n"


def push(loads: Sequence[LeftLoad], url: str, *, job: str) -> None:
    """Send the figures of some loads to a collector.

    Args:
        loads: Of which runs.
        url: Of the collector; without a path, `/v1/metrics` is added. User and password in it are sent as a header.
            What else authorizes is in OpenTelemetry's own variable, `OTEL_EXPORTER_OTLP_HEADERS`.
        job: The resource's `service.name`.

    Raises:
        ConfigError: OpenTelemetry is not installed, or the address is none.
        ResultsError: The collector cannot be reached, refuses, or takes only some of the figures; or a table of
            requests cannot be read.
    """
    target = endpoint(url, where="--push")
    found = data(loads, job=job)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.metrics.export import MetricExportResult  # noqa: PLC0415 - an extra

    address = urlsplit(target.url)
    if address.path in {"", "/"}:
        address = address._replace(path=_PATH)
    answers = _Answers()
    exporter = OTLPMetricExporter(
        endpoint=urlunsplit(address),
        headers={"Authorization": target.authorization} if target.authorization else None,
        timeout=_TIMEOUT_S,
        session=answers.session,
    )
    try:
        with _Heard() as heard:
            result = exporter.export(found)
    finally:
        exporter.shutdown()
    refused = answers.refused() if result is MetricExportResult.SUCCESS else answers.why() or heard.last()
    if refused:
        raise ResultsError(
            f"the collector did not take the figures: {redacted(refused)}",
            where=urlunsplit(address),
            todo="does it take OTLP over HTTP there (the usual port is 4318), and does it let you in?",
        )


def data(loads: Iterable[LeftLoad], *, job: str) -> MetricsData:
    """Return the figures as OpenTelemetry's own data: gauges and histograms, each point at the end of its load.

    Args:
        loads: Of which runs.
        job: The resource's `service.name`.

    Raises:
        ConfigError: OpenTelemetry is not installed.
        ResultsError: A table of requests cannot be read.
    """
    try:
        from opentelemetry.exporter.otlp.proto import http  # noqa: F401, PLC0415 - an extra
        from opentelemetry.sdk.metrics import export  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"needs OpenTelemetry ({error})", where="--to otlp", todo=_EXTRA) from None
    families: dict[str, Metric] = {}
    points: dict[str, list[Any]] = {}
    for load in loads:
        begin_ns, end_ns = _times_ns(load)
        for family in prometheus.families([load]):
            families.setdefault(family.name, family)
            points.setdefault(family.name, []).extend(_points(family, begin_ns, end_ns, export))
    metrics = [
        export.Metric(
            # The name in Prometheus of what says something of a load and has no value.
            name=name + ("_info" if family.type == "info" else ""),
            description=family.documentation,
            unit=_UNITS.get(family.unit, ""),
            data=export.Histogram(points[name], export.AggregationTemporality.CUMULATIVE)
            if family.type == "histogram"
            else export.Gauge(points[name]),
        )
        for name, family in families.items()
        if points[name]
    ]
    scope = InstrumentationScope("pytest-kvcache", metadata.version("pytest-kvcache"))
    resource = Resource({"service.name": job, "service.instance.id": socket.gethostname()})
    return export.MetricsData([export.ResourceMetrics(resource, [export.ScopeMetrics(scope, metrics, "")], "")])


def _times_ns(load: LeftLoad) -> tuple[int, int]:
    """Return begin and end of a load (ns since 1970); now where it does not tell."""
    told = load.facts.load
    if told.started_at is None:
        return (now := time.time_ns()), now
    begin_ns = round(told.started_at * 1e9)
    return begin_ns, begin_ns + round((told.elapsed_s or 0.0) * 1e9)


def _points(family: Metric, begin_ns: int, end_ns: int, export: Any) -> list[Any]:
    if family.type != "histogram":
        return [export.NumberDataPoint(each.labels, begin_ns, end_ns, float(each.value)) for each in family.samples]
    buckets = [each for each in family.samples if each.name.endswith("_bucket")]
    upto = [int(each.value) for each in buckets]
    (total,) = (float(each.value) for each in family.samples if each.name.endswith("_sum"))
    return [
        export.HistogramDataPoint(
            attributes=_without_bound(buckets[0]),
            start_time_unix_nano=begin_ns,
            time_unix_nano=end_ns,
            count=upto[-1],
            sum=total,
            # Prometheus counts up to a bound, OTLP between two of them.
            bucket_counts=[here - before for before, here in zip([0, *upto], upto, strict=False)],
            explicit_bounds=[float(each.labels["le"]) for each in buckets[:-1]],
            min=None,
            max=None,
        )
    ]


def _without_bound(sample: Sample) -> dict[str, str]:
    return {name: value for name, value in sample.labels.items() if name != "le"}


@dataclass
class _Answers:
    """Keeps the last answer of the collector: the exporter takes a partial success for a whole one, and a 3xx too."""

    session: requests.Session = field(default_factory=requests.Session)
    last: requests.Response | None = None

    def __post_init__(self) -> None:
        self.session.hooks["response"].append(self._keep)

    def _keep(self, response: requests.Response, *_: object, **__: object) -> None:
        self.last = response

    def why(self) -> str:
        """Return why the collector refused, "" where it did not answer."""
        if self.last is None:
            return ""
        said = (
            " ".join(self.last.text.split())[:200] if self.last.headers.get("content-type", "")[:5] == "text/" else ""
        )
        return f"{self.last.status_code} {self.last.reason or ''}".strip() + (f": {said}" if said else "")

    def refused(self) -> str:
        """Return what of a success is none, "" where all figures were taken."""
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2  # noqa: PLC0415 - an extra

        if self.last is None or self.last.status_code // 100 != 2:
            return self.why()
        if self.last.headers.get("content-type", "").partition(";")[0].strip() != "application/x-protobuf":
            return ""
        try:
            said = metrics_service_pb2.ExportMetricsServiceResponse.FromString(self.last.content).partial_success
        except Exception as error:  # protobuf's own error is of no public class
            return f"its answer cannot be read: {error}"
        if not said.rejected_data_points:
            return ""
        return f"it refused {said.rejected_data_points} points: {' '.join(said.error_message.split())[:200]}"


class _Heard(logging.Handler):
    """Takes what the exporter logs in place of raising it, and keeps it from the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []
        self._logger = logging.getLogger("opentelemetry.exporter")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self._lines.append(" ".join(record.getMessage().split())[:300])

    def last(self) -> str:
        """Return the last line that says why, "" where there is none."""
        return next((line for line in reversed(self._lines) if "error" in line.lower() or "reason" in line), "") or (
            self._lines[-1] if self._lines else "no reason was given"
        )

    def __enter__(self) -> _Heard:
        self._propagates, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagates
