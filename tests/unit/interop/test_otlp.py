"""OTLP: what a collector gets, decoded by OpenTelemetry's own classes, and what is said where it does not take it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from pytest_kvcache.cli import main
from pytest_kvcache.interop import otlp, prometheus
from tests.unit.interop.make import STARTED_AT, left
from tests.unit.interop.test_export import HOSTILE

Printed = pytest.CaptureFixture[str]
PROTOBUF = "application/x-protobuf"


class Collector(HTTPServer):
    """A collector of the test: keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], ExportMetricsServiceRequest]] = []
        self.status, self.kind, self.body, self.location = 200, PROTOBUF, b"", ""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        """Keep the request, decoded."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((self.path, headers, ExportMetricsServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.kind)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that takes everything."""
    server = Collector()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one tier at one length."""
    left(tmp_path / "20261129-1", "pnfs")
    return tmp_path / "20261129-1"


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that is not there is not asked for half a minute, and the caller's own settings play no part."""
    monkeypatch.setattr(otlp, "_TIMEOUT_S", 0.5)
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def exported(run: Path, *more: str) -> int:
    """Run the command and return its exit code."""
    return main(["export", str(run), "--to", "otlp", *more])


def metrics_of(request: ExportMetricsServiceRequest) -> dict[str, Any]:
    """Return the metrics of a request by name."""
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "pytest-kvcache"
    return {metric.name: metric for metric in scope.metrics}


def attributes(holder: Any) -> dict[str, str]:
    """Return attributes as a dict of texts."""
    return {each.key: each.value.string_value for each in holder.attributes}


def test_a_collector_gets_the_figures(run: Path, collector: Collector, capsys: Printed) -> None:
    """Each figure is a gauge with its unit and labels, at the end of its load; TTFT is a histogram that adds up."""
    assert exported(run, "--endpoint", collector.url, "--job", "nightly") == 0
    assert capsys.readouterr().out == "pushed 1 loads\n"
    ((path, headers, request),) = collector.got
    assert (path, headers["content-type"]) == ("/v1/metrics", PROTOBUF)
    assert attributes(request.resource_metrics[0].resource)["service.name"] == "nightly"
    found = metrics_of(request)
    figures = json.loads((run / "pnfs/boot-1/context-9000/run.json").read_text())["estimates"]
    for key, value in figures.items():
        (point,) = found[prometheus.metric_name(key)].gauge.data_points
        assert point.as_double == pytest.approx(value)
    (point,) = found["kvcache_ttft_p99_seconds"].gauge.data_points
    assert found["kvcache_ttft_p99_seconds"].unit == "s"
    assert attributes(point) == {"run": "20261129-1", "tier": "pnfs", "boot": "boot-1", "context_tokens": "9000"}
    assert point.time_unix_nano == pytest.approx((STARTED_AT + 8.5) * 1e9, abs=1e3)
    (info,) = found["kvcache_load_info"].gauge.data_points
    assert (attributes(info)["version_vllm"], info.as_double) == ("0.32.0", 1.0)
    histogram = found["kvcache_ttft_seconds"].histogram
    assert histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = histogram.data_points
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert sum(point.bucket_counts) == point.count == 12
    at = list(point.explicit_bounds).index(0.25)
    assert sum(point.bucket_counts[: at + 1]) == 1  # at most 0.25 s, as Prometheus' bucket
    assert point.sum == pytest.approx(12 * figures["ttft_mean_s"])
    assert point.start_time_unix_nano == pytest.approx(STARTED_AT * 1e9, abs=1e3)


def test_loads_are_points_of_one_metric(tmp_path: Path, collector: Collector) -> None:
    """Several loads go in one request, a point each, with labels that tell them apart."""
    for context in (1000, 9000):
        for tier in ("gpu", "pnfs"):
            left(tmp_path / "1", tier, context)
    assert exported(tmp_path / "1", "--push", collector.url) == 0
    ((_, _, request),) = collector.got
    for metric in metrics_of(request).values():
        points = (metric.gauge if metric.HasField("gauge") else metric.histogram).data_points
        labels = [(attributes(point)["tier"], attributes(point)["context_tokens"]) for point in points]
        assert sorted(labels) == [("gpu", "1000"), ("gpu", "9000"), ("pnfs", "1000"), ("pnfs", "9000")]


def test_a_path_is_kept_and_a_password_is_a_header(run: Path, collector: Collector, capsys: Printed) -> None:
    """A collector behind a path is asked there; user and password are in the header and in no output."""
    assert exported(run, "--push", collector.url.replace("://", "://me:sesame-7@") + "/otlp/api") == 0
    ((path, headers, _),) = collector.got
    assert path == "/otlp/api"
    assert headers["authorization"].startswith("Basic ")
    collector.status = 403
    assert exported(run, "--push", collector.url.replace("://", "://me:sesame-7@")) == 1
    out, err = capsys.readouterr()
    assert "sesame" not in out + err


def test_headers_of_the_environment_are_sent(run: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenTelemetry's own variable says is sent, as to any of its exporters."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=team")
    assert exported(run, "--push", collector.url) == 0
    ((_, headers, _),) = collector.got
    assert headers["x-scope-orgid"] == "team"


@pytest.mark.parametrize(("status", "told"), [(400, "400"), (401, "401"), (404, "404"), (500, "500"), (503, "503")])
def test_a_collector_that_refuses_is_named(
    run: Path, collector: Collector, capsys: Printed, status: int, told: str
) -> None:
    """A refusal fails the command in one error with address, status and the server's words, and nothing is logged."""
    collector.status, collector.kind, collector.body = status, "text/plain", b"no such\ntenant"
    assert exported(run, "--push", collector.url) == 1
    error = capsys.readouterr().err
    assert f"{collector.url}/v1/metrics: the collector did not take the figures: {told}" in error
    assert "no such tenant" in error
    assert len(error.splitlines()) == 2


def test_a_part_that_is_refused_is_no_success(run: Path, collector: Collector, capsys: Printed) -> None:
    """A collector that takes the request and not all of its points is told of, with its reason."""
    partial = ExportMetricsPartialSuccess(rejected_data_points=3, error_message="too old")
    collector.body = ExportMetricsServiceResponse(partial_success=partial).SerializeToString()
    assert exported(run, "--push", collector.url) == 1
    assert "it refused 3 points: too old" in capsys.readouterr().err


def test_a_warning_with_a_success_is_none(run: Path, collector: Collector) -> None:
    """A partial success that refuses nothing is a success, as the protocol has it."""
    partial = ExportMetricsPartialSuccess(rejected_data_points=0, error_message="slow down")
    collector.body = ExportMetricsServiceResponse(partial_success=partial).SerializeToString()
    assert exported(run, "--push", collector.url) == 0


def test_an_answer_that_is_none_is_told(run: Path, collector: Collector, capsys: Printed) -> None:
    """Bytes that are no answer of a collector are named; a page of something else that says 200 is taken."""
    collector.body = b"\xff\xff\xff"
    assert exported(run, "--push", collector.url) == 1
    assert "its answer cannot be read" in capsys.readouterr().err


def test_nobody_there_is_named(run: Path, capsys: Printed) -> None:
    """A collector that is not there fails the command with its address, in one error."""
    assert exported(run, "--push", "http://127.0.0.1:1") == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:1/v1/metrics: the collector did not take the figures" in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 2


def test_the_file_is_otlp_s_json(run: Path, collector: Collector, tmp_path: Path) -> None:
    """The file has the same request as the push, in one line of OTLP JSON, with numbers for enumerations."""
    output = tmp_path / "out.json"
    assert exported(run, "--output", str(output)) == 0
    (line,) = output.read_text(encoding="utf-8").splitlines()
    assert exported(run, "--push", collector.url) == 0
    ((_, _, request),) = collector.got
    assert Parse(line, ExportMetricsServiceRequest()) == request
    metrics = json.loads(line)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    histograms = [each["histogram"] for each in metrics if "histogram" in each]
    assert [each["aggregationTemporality"] for each in histograms] == [2, 2, 2]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_values(tmp_path: Path, name: str) -> None:
    """Names with marks of any format are attributes as they are."""
    shown = name.replace("\udcff", "?")
    left(tmp_path / "1", name, label=shown)
    output = tmp_path / "out.json"
    assert exported(tmp_path / "1", "--output", str(output)) == 0
    request = Parse(output.read_text(encoding="utf-8"), ExportMetricsServiceRequest())
    points = [point for metric in metrics_of(request).values() for point in metric.gauge.data_points]
    assert {attributes(point)["tier"] for point in points} == {shown}


def test_without_opentelemetry_the_extra_is_named(run: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the error says what to install."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "opentelemetry":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert exported(run) == 1
    error = capsys.readouterr().err
    assert "--to otlp: needs OpenTelemetry" in error
    assert "pip install 'pytest-kvcache[otlp]'" in error
