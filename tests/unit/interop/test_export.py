"""Exports of runs: valid by other tools' own readers, with our figures in them, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml
from llmd_benchmark_report.core import load_benchmark_report
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pytest_kvcache.cli import main
from pytest_kvcache.commands.export import FORMATS
from pytest_kvcache.interop import boots, llmd, prometheus
from pytest_kvcache.workload import reference_csv
from tests.unit.interop.make import KEYS, STARTED_AT, left, rows

#: Names of tiers and folders that would break out of a label, a line or a document.
HOSTILE = ['a"b', "a\\b", "a\nb", "a{b}", "# EOF", "ü→x", "a,b", "- a: b", "'", "%s", "a\udcffb", "\x07"]
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one tier at one length."""
    left(tmp_path / "20261129-1", "pnfs")
    return tmp_path / "20261129-1"


def exported(run: Path, to: str, capsys: Printed, *more: str) -> str:
    """Return what `export` prints."""
    assert main(["export", str(run), "--to", to, *more]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("version", llmd.VERSIONS)
@pytest.mark.parametrize("gpus", [KEYS["hardware.gpus"], "none"])
def test_a_report_is_valid_by_llm_d_s_own_models(tmp_path: Path, capsys: Printed, version: str, gpus: str) -> None:
    """Each version is loaded by llm-d's own package, with GPUs and without, and says its version."""
    left(tmp_path / "1", comparability=KEYS | {"hardware.gpus": gpus, "workload.context_tokens": "9000"})
    document = yaml.safe_load(exported(tmp_path / "1", f"llm-d-{version}", capsys))
    loaded = load_benchmark_report(document)
    assert loaded.dump()["version"] == version


def test_the_default_of_llm_d_is_the_widest_read_version(run: Path, capsys: Printed) -> None:
    """`llm-d` alone is version 0.2, which readers of 0.2.1 take too."""
    assert yaml.safe_load(exported(run, "llm-d", capsys))["version"] == "0.2"


def test_a_report_has_our_figures(run: Path, capsys: Printed) -> None:
    """TTFT, TPOT, lengths, counts and rates are those of run.json; yardsticks are in none of them."""
    document = yaml.safe_load(exported(run, "llm-d-0.2", capsys))
    figures = json.loads((run / "pnfs/boot-1/context-9000/run.json").read_text())["estimates"]
    got = document["results"]["request_performance"]["aggregate"]
    assert got["latency"]["time_to_first_token"]["mean"] == pytest.approx(figures["ttft_mean_s"])
    assert got["latency"]["time_to_first_token"]["p99"] == pytest.approx(figures["ttft_p99_s"])
    assert got["latency"]["time_per_output_token"]["p50"] == pytest.approx(figures["tpot_p50_s"])
    assert got["latency"]["inter_token_latency"]["p90"] == pytest.approx(figures["itl_p90_s"])
    assert got["latency"]["request_latency"]["mean"] == pytest.approx(figures["e2el_mean_s"])
    assert got["throughput"]["total_token_rate"]["mean"] == pytest.approx(figures["tokens_per_s"])
    assert got["throughput"]["request_rate"]["mean"] == pytest.approx(figures["requests_per_s"])
    assert (got["requests"]["total"], got["requests"]["failures"], got["requests"]["incomplete"]) == (13, 1, 0)
    assert got["requests"]["input_length"]["mean"] == 1005.5
    older = yaml.safe_load(exported(run, "llm-d-0.1", capsys))["metrics"]
    assert older["throughput"]["total_tokens_per_sec"] == pytest.approx(figures["tokens_per_s"])
    assert older["time"]["start"] == STARTED_AT


def test_a_report_says_who_measured(run: Path, capsys: Printed) -> None:
    """Version 0.1 has a closed list of load generators: the real one stands in the metadata."""
    scenario = yaml.safe_load(exported(run, "llm-d-0.1", capsys))["scenario"]
    assert scenario["load"]["metadata"]["tool"] == "pytest-kvcache"
    assert scenario["host"]["accelerator"] == [{"model": "NVIDIA H200", "count": 1}] * 2
    stack = yaml.safe_load(exported(run, "llm-d-0.2", capsys))["scenario"]["stack"]
    assert [each["metadata"]["label"] for each in stack] == ["vllm", "lmcache", "router"]
    assert stack[0]["standardized"]["replicas"] == 2
    assert stack[0]["native"]["args"] == {"--port": "8001", "--tensor-parallel-size": "1", "--no-log": None}


def test_a_file_s_name_chooses_json(run: Path, tmp_path: Path) -> None:
    """A file that ends with .json holds JSON, with the same content as the YAML."""
    for name in ("a.json", "a.yaml"):
        assert main(["export", str(run), "--to", "llm-d", "--output", str(tmp_path / name)]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == yaml.safe_load((tmp_path / "a.yaml").read_text())


@pytest.mark.parametrize(("to", "parse"), [("prometheus", parse_text), ("openmetrics", parse_openmetrics)])
def test_metrics_are_read_by_the_client_s_own_parsers(
    run: Path, capsys: Printed, to: str, parse: Callable[[str], Any]
) -> None:
    """Each figure of run.json is a gauge with its unit in full; TTFT is a histogram whose buckets add up."""
    text = exported(run, to, capsys)
    assert text.endswith("# EOF\n") == (to == "openmetrics")
    families = {family.name: family for family in parse(text)}
    samples = {(s.name, s.labels.get("le")): s.value for family in families.values() for s in family.samples}
    figures = json.loads((run / "pnfs/boot-1/context-9000/run.json").read_text())["estimates"]
    for key, value in figures.items():
        assert samples[prometheus.metric_name(key), None] == pytest.approx(value)
    assert samples["kvcache_ttft_seconds_bucket", "0.25"] == 1
    assert samples["kvcache_ttft_seconds_bucket", "+Inf"] == samples["kvcache_ttft_seconds_count", None] == 12
    assert samples["kvcache_ttft_seconds_sum", None] == pytest.approx(12 * figures["ttft_mean_s"])
    assert families["kvcache_ttft_p99_seconds"].samples[0].labels == {
        "run": "20261129-1", "tier": "pnfs", "boot": "boot-1", "context_tokens": "9000",
    }  # fmt: skip
    if to == "openmetrics":
        assert families["kvcache_ttft_p99_seconds"].unit == "seconds"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("ttft_p99_s", "kvcache_ttft_p99_seconds"),
        ("tokens_per_s", "kvcache_tokens_per_second"),
        ("cpu_s_per_request", "kvcache_cpu_seconds_per_request"),
        ("l2_load_bytes_per_s", "kvcache_l2_load_bytes_per_second"),
        ("cached_share", "kvcache_cached_share"),
        ("odd-name.x", "kvcache_odd_name_x"),
        ("requests_total", "kvcache_requests_total_value"),
        ("ttft_s", "kvcache_ttft_seconds_value"),
    ],
)
def test_names_of_metrics(key: str, name: str) -> None:
    """Units are written in full, and no gauge has an ending that OpenMetrics keeps for others."""
    assert prometheus.metric_name(key) == name


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("to", [to for to in FORMATS if to not in {"reference-csv", "otlp"}])
def test_hostile_names_stay_values(tmp_path: Path, name: str, to: str) -> None:
    """Names with quotes, line breaks, bytes that are no text or marks of the format come out as they went in."""
    shown = name.replace("\udcff", "?")
    left(tmp_path / "1", name, label=shown, versions={"vllm": shown})
    output = tmp_path / "out.txt"
    assert main(["export", str(tmp_path / "1"), "--to", to, "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    if to in {"prometheus", "openmetrics"}:
        families = list((parse_text if to == "prometheus" else parse_openmetrics)(text))
        assert {s.labels["tier"] for family in families for s in family.samples} == {shown}
    else:
        document = yaml.safe_load(text)
        load_benchmark_report(document)
        assert shown in json.dumps(document, ensure_ascii=False) or json.dumps(shown)[1:-1] in json.dumps(document)


def test_the_reference_csv_is_the_script_s(run: Path, capsys: Printed, tmp_path: Path) -> None:
    """The CSV has exactly the columns of multi-round-qa.py, the finished requests, and times of the wall clock."""
    output = tmp_path / "out.csv"
    assert main(["export", str(run), "--to", "reference-csv", "--output", str(output)]) == 0
    table = pd.read_csv(output)
    assert tuple(table.columns) == reference_csv.COLUMNS
    assert len(table) == 13
    assert table["launch_time"].min() == STARTED_AT
    assert np.allclose(table["finish_time"] - table["launch_time"], table["ttft"] + table["generation_time"])


def test_several_loads_need_a_folder(tmp_path: Path, capsys: Printed) -> None:
    """Formats with a file a load are refused for one file, and written into a folder under names of their own."""
    for context in (1000, 9000):
        left(tmp_path / "1", context=context)
    assert main(["export", str(tmp_path / "1"), "--to", "llm-d"]) == 1
    assert "--output: llm-d has a file for each load, and there are 2" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "1"), "--to", "llm-d", "--output", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["1-pnfs-boot-1-context-1000.yaml", "1-pnfs-boot-1-context-9000.yaml"]
    assert yaml.safe_load(exported(tmp_path / "1", "llm-d", capsys, "--context", "1000"))["version"] == "0.2"


@pytest.mark.parametrize(("name", "is_folder"), [("v0.2/", True), ("out", True), ("there.d", True), ("a.yaml", False)])
def test_a_folder_is_told_from_a_file(tmp_path: Path, name: str, is_folder: bool) -> None:
    """A path that ends with /, has no suffix or is a folder already takes a file a load; any other one is the file."""
    left(tmp_path / "1")
    (tmp_path / "there.d").mkdir()
    assert main(["export", str(tmp_path / "1"), "--to", "llm-d", "--output", f"{tmp_path}/{name}"]) == 0
    assert (tmp_path / name).is_dir() is is_folder


def test_no_load_takes_the_place_of_another(tmp_path: Path, capsys: Printed) -> None:
    """A copy of a run, whose labels and file names would be the same, is left out and named; a renamed one is not."""
    for folder in ("a/1", "b/1", "b/2"):
        left(tmp_path / folder)
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "openmetrics"]) == 0
    out, err = capsys.readouterr()
    assert [line.count("kvcache_load_info{") for line in out.splitlines() if "load_info{" in line] == [1, 1]
    assert err.startswith(f"left out: {tmp_path}/b/1/pnfs/boot-1/context-9000/run.json: has the run, tier, boot and")
    assert len(err.splitlines()) == 1


def test_an_unknown_tier_or_length_names_those_that_are_there(tmp_path: Path, capsys: Printed) -> None:
    """The error says which cells the runs have."""
    left(tmp_path / "1")
    assert main(["export", str(tmp_path / "1"), "--to", "llm-d", "--tier", "s3"]) == 1
    assert "there is no valid load of s3\n  -> there are pnfs/9000" in capsys.readouterr().err


def test_invalid_and_damaged_loads_are_left_out_and_named(tmp_path: Path, capsys: Printed) -> None:
    """What no figure may rest on is in no export; standard error names it, and standard output stays clean."""
    left(tmp_path / "1", "gpu")
    left(tmp_path / "1", "cpu", faults=["the tier was off"])
    (left(tmp_path / "1", "pnfs") / "run.json").write_text("{")
    assert main(["export", str(tmp_path / "1"), "--to", "prometheus"]) == 0
    out, err = capsys.readouterr()
    assert {s.labels["tier"] for family in parse_text(out) for s in family.samples} == {"gpu"}
    assert "left out" not in out
    assert "invalid: the tier was off" in err
    assert len(err.splitlines()) == 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"estimates": {"ttft_p99_s": "fast"}}, "estimates.ttft_p99_s"),
    ({"estimates": {"ttft_p99_s": None}}, "estimates.ttft_p99_s"),
    ({"faults": None}, "faults"),
    ({"commands": {"vllm-0": "vllm serve"}}, "commands.vllm-0"),
    ({"comparability": {}}, "comparability.workload.context_tokens"),
    ({"comparability": {"workload.context_tokens": "many"}}, "comparability.workload.context_tokens"),
    ({"load": {"started_at": "yesterday"}}, "load.started_at"),
    ({"versions": ["0.32"]}, "versions"),
]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("more", "key"), WRONG)
def test_a_wrong_key_is_named_with_its_file(
    tmp_path: Path, capsys: Printed, to: str, more: dict[str, Any], key: str
) -> None:
    """A run.json with a value of another type is refused with file and key, whatever the format."""
    left(tmp_path / "1", **more)
    assert main(["export", str(tmp_path / "1"), "--to", to]) == 1
    error = capsys.readouterr().err
    assert f"run.json: {key}: " in error
    assert "Traceback" not in error


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("content", [None, b"", b"PAR1", "half"])
def test_a_damaged_table_is_named(tmp_path: Path, capsys: Printed, to: str, content: Any) -> None:
    """A table of requests that is missing, empty or cut is refused with its name."""
    path = left(tmp_path / "1") / "requests.parquet"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert main(["export", str(tmp_path / "1"), "--to", to]) == 1
    error = capsys.readouterr().err
    assert "requests.parquet: " in error
    assert "Traceback" not in error


@pytest.mark.parametrize("version", llmd.VERSIONS)
def test_without_finished_requests_there_is_no_report(tmp_path: Path, capsys: Printed, version: str) -> None:
    """llm-d's report needs a finished request; a load without is refused with its folder."""
    left(tmp_path / "1", requests=rows()[12:14])
    assert main(["export", str(tmp_path / "1"), "--to", f"llm-d-{version}"]) == 1
    assert "context-9000: no request finished" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_few_requests_make_a_valid_report(tmp_path: Path, count: int) -> None:
    """One request, and answers of one token, leave out what has no value."""
    short = rows()[:count]
    for row in short:
        row.generated_tokens, row.token_times_s, row.last_token_s = 1, row.token_times_s[:1], row.first_token_s
    folder = left(tmp_path / "1", requests=short)
    for version in llmd.VERSIONS:
        document = llmd.report(boots.read(folder / "run.json"), version)
        load_benchmark_report(document)
        assert "inter_token_latency" not in json.dumps(document)
        assert all(math.isfinite(value) for value in _numbers(document))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in _numbers(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in _numbers(inner)]
    return [value] if isinstance(value, float) else []


class _Gateway(BaseHTTPRequestHandler):
    """A Pushgateway of the test: keeps what it gets."""

    got: ClassVar[list[tuple[str, str, dict[str, str], str]]] = []
    status: ClassVar[int] = 200

    def do_PUT(self) -> None:
        """Keep the request."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.got.append((self.command, self.path, dict(self.headers), body))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def gateway() -> Any:
    """The address of a server that takes what is pushed."""
    _Gateway.got, _Gateway.status = [], 200
    server = HTTPServer(("127.0.0.1", 0), _Gateway)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_figures_are_pushed(run: Path, gateway: str, capsys: Printed) -> None:
    """The group of job and machine is replaced; a password in the address goes into a header and into no output."""
    url = f"http://me:sesame-9@{gateway}"
    assert main(["export", str(run), "--to", "prometheus", "--push", url, "--job", "nightly"]) == 0
    ((method, path, headers, body),) = _Gateway.got
    assert method == "PUT"
    assert path.startswith("/metrics/job/nightly/instance/")
    assert headers["Authorization"].startswith("Basic ")
    assert any(family.name == "kvcache_ttft_p99_seconds" for family in parse_text(body))
    assert capsys.readouterr().out == "pushed 1 loads\n"


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_pushgateway_that_refuses_is_named(run: Path, gateway: str, capsys: Printed, status: int) -> None:
    """A refusal fails the command with the address and without the password."""
    _Gateway.status = status
    assert main(["export", str(run), "--to", "prometheus", "--push", f"http://me:sesame-9@{gateway}"]) == 1
    error = capsys.readouterr().err
    assert f"http://{gateway}: the Pushgateway did not take the figures: HTTP Error {status}" in error
    assert "sesame" not in error


def test_nobody_there_is_named(run: Path, capsys: Printed) -> None:
    """A Pushgateway that is not there fails the command with its address."""
    assert main(["export", str(run), "--to", "openmetrics", "--push", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1: the Pushgateway did not take the figures" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--to", "llm-d", "--push", "http://x"],
        ["--to", "prometheus", "--push", "http://x", "--output", "y"],
        ["--to", "otlp", "--endpoint", "http://x", "--output", "y"],
    ],
)
def test_flags_that_do_not_fit_are_refused(run: Path, capsys: Printed, more: list[str]) -> None:
    """--push goes with a format of metrics, and with no file."""
    assert main(["export", str(run), *more]) == 1
    assert "--push: goes with" in capsys.readouterr().err


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: Printed) -> None:
    """A folder that is not there, and one without a load, are errors with their names."""
    assert main(["export", str(tmp_path / "no"), "--to", "prometheus"]) == 1
    assert f"{tmp_path / 'no'}: is no folder of a run" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--to", "prometheus", "--tier", "s3"]) == 1
    assert f"{tmp_path}: there is no valid load of s3" in capsys.readouterr().err
