"""Results of other tools become runs that stand beside ours, and what is none of them is refused by name.

The files are written here by the formats that the tools' sources have, of the versions that a test names.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cli import main
from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop.folder import READERS
from pytest_kvcache.load import table
from pytest_kvcache.report import compared, series
from pytest_kvcache.workload import reference_csv
from tests.unit.interop.make import STARTED_AT, left

Printed = pytest.CaptureFixture[str]
START_NS = 1_764_400_000_250_000_000
TTFTS = (0.25, 0.5, 1.0)


def reference() -> str:
    """Return a CSV as multi-round-qa.py writes it."""
    lines = [",".join(reference_csv.COLUMNS)]
    for at, ttft in enumerate(TTFTS):
        start = STARTED_AT + at
        lines.append(f"1000,100,{ttft},2.0,{at + 1},1,{start},{start + ttft + 2.0}")
    return "\n".join(lines) + "\n"


def aiperf_record(at: int, ttft: float, *, unit: str = "ms", omit: bool = False) -> dict[str, Any]:
    """Return a record of profile_export.jsonl; `omit` leaves out defaults, as aiperf 0.13 does."""
    scale = {"ns": 1e9, "us": 1e6, "ms": 1e3, "sec": 1.0}[unit]
    start = START_NS + at * 1_000_000_000
    metadata = {
        "session_num": at, "x_request_id": f"r{at}", "x_correlation_id": f"c{at // 2}", "turn_index": at % 2,
        "request_start_ns": start, "request_end_ns": start + 3_000_000_000, "worker_id": "w",
        "record_processor_id": "p",
        "benchmark_phase": "profiling", "was_cancelled": False,
    }  # fmt: skip
    metrics = {
        "input_sequence_length": {"value": 1000, "unit": "tokens"},
        "output_sequence_length": {"value": 3, "unit": "tokens"},
        "time_to_first_token": {"value": ttft * scale, "unit": unit},
        "request_latency": {"value": (ttft + 0.2) * scale, "unit": unit},
        "inter_chunk_latency": {"value": [0.1 * scale, 0.1 * scale], "unit": unit},
    }
    return {"metadata": metadata, "metrics": metrics} | ({} if omit else {"error": None})


def aiperf(**more: Any) -> str:
    """Return a profile_export.jsonl with three finished requests."""
    return "".join(json.dumps(aiperf_record(at, ttft, **more)) + "\n" for at, ttft in enumerate(TTFTS))


def guidellm_request(at: int, ttft: float, layout: str) -> dict[str, Any]:
    """Return a finished request of benchmarks.json as the versions before 0.4 (`flat`) or since have it."""
    start = STARTED_AT + at
    counts = {"request_id": str(at), "prompt_tokens": 1000, "output_tokens": 3}
    if layout == "flat":
        times = {"start_time": start, "end_time": start + 1.5, "first_token_time": start + ttft}
        return counts | times | {"type_": "generative_text_response", "last_token_time": start + 1.5, "output": "x"}
    timings = {"request_start": start, "first_token_iteration": start + ttft, "last_token_iteration": start + 1.5}
    info = {"request_id": str(at), "timings": timings | {"request_end": start + 1.6}, "error": None}
    return counts | {"info": info, "input_metrics": {"text_tokens": 1000}, "time_to_first_token_ms": ttft * 1000}


#: Versions of guidellm with what stands at the top of their files, and how a request looks.
GUIDELLM: dict[str, tuple[dict[str, Any], str]] = {
    "0.2.1": ({}, "flat"),
    "0.4.0": ({"args": {"model": "m"}}, "timings"),
    "0.6.1": ({"metadata": {"version": 1, "guidellm_version": "0.6.1"}, "args": {"model": "m"}}, "timings"),
    "0.8.1": (
        {"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "config": {"spec": {"backend": {"model": "m"}}}},
        "timings",
    ),
}


def guidellm(version: str = "0.8.1", *, rates: tuple[float, ...] = (2.0,), **more: Any) -> str:
    """Return a benchmarks.json of a version, with a benchmark for each rate; `more` are keys of each benchmark."""
    top, layout = GUIDELLM[version]
    place = "args" if layout == "flat" else "config"
    benchmarks = [
        {
            "type_": "generative_benchmark",
            place: {"strategy": {"type_": "constant", "rate": rate}},
            "metrics": {"request_totals": {"successful": 3, "errored": 0, "incomplete": 0, "total": 3}},
            "requests": {
                "successful": [guidellm_request(at, ttft, layout) for at, ttft in enumerate(TTFTS)],
                "errored": [],
                "incomplete": [],
                "total": None,
            },
        }
        | more
        for rate in rates
    ]
    return json.dumps(top | {"benchmarks": benchmarks})


#: Every format and version: tool, name of the file, content.
WHOLE = [
    ("reference-csv", "summary.csv", reference()),
    ("aiperf", "profile_export.jsonl", aiperf()),
    ("aiperf", "profile_export.jsonl", aiperf(unit="ns", omit=True)),
    *(("guidellm", "benchmarks.json", guidellm(version)) for version in GUIDELLM),
]


def imported(path: Path, tool: str, *more: str) -> int:
    """Run the command on a file, in its folder; return the exit code."""
    runs = f"--kv-runs={path.parent / 'runs'}"
    return main(["import", "--from", tool, "--label", "pnfs", "--context", "9000", runs, str(path), *more])


def of(path: Path) -> list[Path]:
    """Return the folders of the loads that were made beside a file."""
    return sorted(each.parent for each in (path.parent / "runs").rglob("run.json"))


@pytest.mark.parametrize(("tool", "name", "text"), WHOLE)
def test_ttft_of_each_request_is_the_file_s(tmp_path: Path, tool: str, name: str, text: str) -> None:
    """TTFT, starts, counts and the wall clock of every request come over, and the figures are computed of them."""
    path = tmp_path / name
    path.write_text(text)
    assert imported(path, tool) == 0
    (folder,) = of(path)
    rows = table.read(folder / "requests.parquet")
    assert (rows["first_token_s"] - rows["actual_start_s"]).tolist() == pytest.approx(TTFTS, abs=2e-6)
    assert rows["actual_start_s"].tolist() == pytest.approx([0.0, 1.0, 2.0], abs=2e-6)
    assert rows["prompt_tokens"].tolist() == [1000] * 3
    facts = json.loads((folder / "run.json").read_text())
    assert facts["load"]["started_at"] == STARTED_AT
    assert facts["estimates"]["ttft_mean_s"] == pytest.approx(sum(TTFTS) / 3, abs=2e-6)
    assert facts["imported"]["tool"] == tool
    assert len(facts["imported"]["sha256"]) == 64


def test_turns_of_a_conversation_are_a_user_s_rounds(tmp_path: Path) -> None:
    """Aiperf's conversations become users, their turns rounds, and gaps between chunks arrivals of tokens."""
    path = tmp_path / "profile_export.jsonl"
    path.write_text(aiperf())
    assert imported(path, "aiperf") == 0
    rows = table.read(of(path)[0] / "requests.parquet")
    assert list(zip(rows["user"], rows["round"], strict=True)) == [(0, 1), (0, 2), (1, 1)]
    assert rows["token_times_s"][1] - rows["first_token_s"][1] == pytest.approx([0.0, 0.1, 0.2])


def test_what_is_no_finished_request_of_aiperf(tmp_path: Path, capsys: Printed) -> None:
    """Warm-up is left out and said; errors and cancelled requests are rows without a TTFT."""
    warm, failed, cancelled = (aiperf_record(at, 0.1) for at in (7, 8, 9))
    warm["metadata"]["benchmark_phase"] = "warmup"
    failed |= {"metrics": {"error_isl": {"value": 1000, "unit": "tokens"}}, "error": {"code": 503, "message": "busy"}}
    cancelled["metadata"]["was_cancelled"] = True
    path = tmp_path / "profile_export.jsonl"
    path.write_text(aiperf() + "".join(json.dumps(each) + "\n" for each in (warm, failed, cancelled)))
    assert imported(path, "aiperf") == 0
    output = capsys.readouterr().out
    assert "3 finished requests, 2 others" in output
    assert "note: 1 records of the warm-up are left out" in output
    rows = table.read(of(path)[0] / "requests.parquet")
    assert rows["status"].tolist() == ["ok"] * 3 + ["error", "cancelled"]
    assert rows["error"][3] == "503 busy"


@pytest.mark.parametrize(
    ("version", "schema", "config", "model"),
    [
        ("0.2.0", "1.0", {"endpoint": {"model_names": ["m"]}}, "m"),
        ("0.14.0", "1.5", {"models": {"items": [{"name": "m"}]}, "endpoint": {"urls": ["http://h"]}}, "m"),
        ("0.14.0", "1.5", {"models": {"items": [3]}, "endpoint": 3}, "not told"),
        ("0.14.0", "1.5", {}, "not told"),
    ],
)
def test_aiperf_s_summary_tells_version_and_model(
    tmp_path: Path, version: str, schema: str, config: dict[str, Any], model: str
) -> None:
    """The file beside the records is read where it is there, wherever its version has the model."""
    path = tmp_path / "profile_export.jsonl"
    path.write_text(aiperf())
    summary = {"schema_version": schema, "aiperf_version": version, "input_config": config}
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(summary))
    assert imported(path, "aiperf") == 0
    facts = json.loads((of(path)[0] / "run.json").read_text())
    assert (facts["imported"]["version"], facts["comparability"]["serving.model"]) == (version, model)


def test_each_rate_of_guidellm_is_a_line_of_its_own(tmp_path: Path) -> None:
    """Benchmarks of one file are told apart by their strategy, or by their number where that is the same."""
    path = tmp_path / "benchmarks.json"
    path.write_text(guidellm(rates=(2.0, 4.0)))
    assert imported(path, "guidellm") == 0
    labels = [json.loads((each / "run.json").read_text())["label"] for each in of(path)]
    assert labels == ["pnfs constant 2 (imported: guidellm)", "pnfs constant 4 (imported: guidellm)"]
    path.write_text(guidellm(rates=(2.0, 2.0)))
    assert [each.name for each in READERS["guidellm"](path)] == ["constant 2 #0", "constant 2 #1"]


def test_a_sample_of_requests_is_said(tmp_path: Path, capsys: Printed) -> None:
    """Where guidellm kept a part of the requests, rates would be too low: a line says so."""
    path = tmp_path / "benchmarks.json"
    path.write_text(guidellm(metrics={"request_totals": {"successful": 300}}))
    assert imported(path, "guidellm") == 0
    assert "note: constant 2: a sample of 3 of 300 finished requests; rates are too low" in capsys.readouterr().out


def test_several_files_are_boots(tmp_path: Path) -> None:
    """Each file is a boot of the same cell."""
    path = tmp_path / "a.csv"
    path.write_text(reference())
    again = path.with_name("b.csv")
    again.write_text(reference().replace("0.25,", "0.26,"))
    assert imported(path, "reference-csv", str(again)) == 0
    assert [each.parent.name for each in of(path)] == ["boot-1", "boot-2"]


def test_a_file_is_one_boot(tmp_path: Path, capsys: Printed) -> None:
    """A file that is named twice, or a copy of it, is refused: as a second boot it would make a spread of nothing."""
    path = tmp_path / "a.csv"
    path.write_text(reference())
    assert imported(path, "reference-csv", str(path)) == 1
    assert f"{path}: is {path} again, and a boot counts once" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_imported_figures_stand_beside_ours_and_are_held_against_none(tmp_path: Path, capsys: Printed) -> None:
    """The report has both in its table, whatever the machine, and no gain against or of what was imported."""
    for tier in ("gpu", "pnfs"):
        left(tmp_path / "runs" / "1", tier)
    path = tmp_path / "gpu.csv"
    path.write_text(reference())
    runs = f"--kv-runs={tmp_path / 'runs'}"
    words = ["import", str(path), "--from", "reference-csv", "--label", "gpu", "--context", "9000", runs]
    assert main(words) == 0
    rows = series.read([tmp_path / "runs"])
    assert rows["label"].tolist() == ["gpu", "pnfs", "gpu (imported: reference-csv)"]
    table_of_means = series.means(rows)
    assert len(table_of_means) == 3
    assert {each.label for each in compared.changes(rows, against="gpu")} == {"pnfs"}
    assert compared.changes(rows, against="gpu (imported: reference-csv)") == []
    assert rows.iloc[0]["hardware"] == "NVIDIA H200, NVIDIA H200"


def test_an_imported_run_can_be_exported(tmp_path: Path, capsys: Printed) -> None:
    """What was imported goes out under its own tool's name."""
    path = tmp_path / "a.csv"
    path.write_text(reference())
    assert imported(path, "reference-csv") == 0
    assert main(["export", str(tmp_path / "runs"), "--to", "reference-csv", "--output", str(tmp_path / "b.csv")]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "b.csv"), pd.read_csv(path), check_exact=False, rtol=1e-9)
    assert main(["export", str(tmp_path / "runs"), "--to", "llm-d"]) == 0
    assert "tool: reference-csv" in capsys.readouterr().out


def _changed(text: str, *keys: str | int, value: Any) -> str:
    """Return JSON with another value at a path of keys; `...` removes the key."""
    document = json.loads(text)
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return json.dumps(document)


def _line(*keys: str, value: Any) -> str:
    return _changed(json.dumps(aiperf_record(0, 0.5)), *keys, value=value)


R = ("benchmarks", 0, "requests", "successful", 1)
#: What is refused: tool, content, what the error says.
REFUSED: list[tuple[str, str | bytes, str]] = [
    ("reference-csv", "", "is empty"),
    ("reference-csv", "\n \n", "is empty"),
    ("reference-csv", b"\xff\xfe\x00", "is not UTF-8"),
    ("reference-csv", "a,b\n1,2\n", "column prompt_tokens is missing; found a, b"),
    ("reference-csv", reference().splitlines()[0], "holds no request that was sent"),
    ("reference-csv", reference().replace("ttft", "TTFT"), "column ttft is missing"),
    ("reference-csv", reference().replace("0.25,", "fast,"), "line 2: ttft: must be a number, not 'fast'"),
    ("reference-csv", reference().replace("0.25,", "nan,"), "line 2: ttft: must be a number, not 'nan'"),
    ("reference-csv", reference().replace("0.25,", "-1,"), "line 2: ttft: must be a number"),
    ("reference-csv", reference().replace("0.25,", "1e300,"), "line 2: ttft: must be a number"),
    ("reference-csv", reference().replace("1000,", "10.5,", 1), "line 2: prompt_tokens: must be a whole number"),
    ("reference-csv", reference() + "1,2\n", "line 5: has 2 values for 8 columns"),
    ("reference-csv", reference() + '"', "is no CSV"),
    ("reference-csv", reference().replace("17644", "9"), "which is no time of a run"),
    ("aiperf", "", "is empty"),
    ("aiperf", "{", "line 1: "),
    ("aiperf", "[]", "line 1: "),
    ("aiperf", "null", "line 1: "),
    ("aiperf", aiperf() + '{"metadata"', "line 4: "),
    ("aiperf", "[" * 100_000, "line 1: "),
    ("aiperf", '{"experiments": []}', "profile_export.json of genai-perf"),
    ("aiperf", '{"schema_version": "1.0", "input_config": {}}', "has statistics and no TTFT per request"),
    ("aiperf", '{"x": 1}', "is no profile_export.jsonl of aiperf"),
    ("aiperf", '{"schema_version": "1.1", "data": []}', "is no profile_export.jsonl of aiperf"),
    ("aiperf", _changed(json.dumps(aiperf_record(0, 0.5)), "metrics", value=...), "line 1: metrics: Field required"),
    ("aiperf", _line("metadata", "request_start_ns", value="now"), "line 1: metadata.request_start_ns: "),
    ("aiperf", _line("metadata", "request_start_ns", value=...), "line 1: metadata.request_start_ns: "),
    ("aiperf", _line("metadata", "benchmark_phase", value=3), "line 1: metadata.benchmark_phase: "),
    ("aiperf", _line("metrics", "time_to_first_token", value=...), "metrics.time_to_first_token: is missing"),
    ("aiperf", _line("metrics", "time_to_first_token", "unit", value="fortnights"), "unit: is 'fortnights'; expected"),
    ("aiperf", _line("metrics", "time_to_first_token", "value", value=-1), "time_to_first_token.value: must be"),
    ("aiperf", _line("metrics", "time_to_first_token", "value", value="1"), "time_to_first_token.value: must be"),
    ("aiperf", _line("metrics", "time_to_first_token", "value", value=[1.0]), "must be a number, not a list"),
    ("aiperf", _line("metrics", "inter_chunk_latency", "value", value=1.0), "latency.value: must be a list"),
    ("aiperf", _line("metrics", "input_sequence_length", "value", value=1.5), "must be a whole number, not 1.5"),
    ("aiperf", _line("metrics", value=[]), "line 1: metrics: "),
    ("aiperf", _line("metadata", "request_start_ns", value=5), "which is no time of a run"),
    ("aiperf", _line("metadata", "was_cancelled", value=True), "holds no request that finished"),
    ("guidellm", "", "is empty"),
    ("guidellm", "{", "Invalid JSON"),
    ("guidellm", "{}", "benchmarks: Field required"),
    ("guidellm", "[]", "should be an object"),
    ("guidellm", "[" * 100_000, "Invalid JSON"),
    ("guidellm", '{"benchmarks": []}', "benchmarks: is empty"),
    ("guidellm", _changed(guidellm(), "metadata", "version", value=3), "version: is 3; expected metadata"),
    ("guidellm", _changed(guidellm(), "metadata", "version", value=0), "version: is 0; expected metadata"),
    ("guidellm", _changed(guidellm(), "metadata", "version", value="2"), "metadata.version: "),
    ("guidellm", _changed(guidellm(), "benchmarks", 0, "requests", value=...), "benchmarks.0.requests: "),
    ("guidellm", _changed(guidellm(), *R[:4], value=[]), "keeps none of its 3 finished requests"),
    ("guidellm", _changed(guidellm(), *R, "info", value=[]), "benchmarks.0.requests.successful.1.info: "),
    ("guidellm", _changed(guidellm(), *R, "info", "timings", "request_start", value="x"), "timings.request_start: "),
    ("guidellm", _changed(guidellm(), *R, "info", "timings", "first_token_iteration", value=None), "with streaming"),
    ("guidellm", _changed(guidellm(), *R, "info", "timings", "first_token_iteration", value=1.0), "none of a request"),
    ("guidellm", _changed(guidellm("0.2.1"), *R, "first_token_time", value=...), "first_token_time: is missing"),
    ("guidellm", _changed(guidellm("0.2.1"), *R, "prompt_tokens", value=1.5), "prompt_tokens: "),
    ("guidellm", _changed(guidellm("0.2.1"), *R, "prompt_tokens", value=10**30), "prompt_tokens: "),
    ("aiperf", _line("metadata", "request_start_ns", value=10**400), "request_start_ns: "),
    ("aiperf", _line("metadata", "turn_index", value=2**62), "turn_index: "),
    ("aiperf", _line("metrics", "input_sequence_length", "value", value=1e300), "must be a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "content", "said"), REFUSED)
def test_what_is_no_such_file_is_refused(
    tmp_path: Path, capsys: Printed, tool: str, content: str | bytes, said: str
) -> None:
    """Empty, damaged, unknown and hostile files are refused with their name and the key, and no run is left."""
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert imported(path, tool) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"pytest-kvcache: {path}")
    assert said in error
    assert len(error.splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


def test_an_unknown_schema_of_aiperf_s_summary_is_refused(tmp_path: Path, capsys: Printed) -> None:
    """A summary of another major version says that the records may mean something else."""
    path = tmp_path / "profile_export.jsonl"
    path.write_text(aiperf())
    (tmp_path / "profile_export_aiperf.json").write_text('{"schema_version": "2.0"}')
    assert imported(path, "aiperf") == 1
    assert "schema_version: is '2.0'; expected 1.x, of aiperf 0.2 to 0.14" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--context", "0"], ["--label", ""], ["--label", "a\nb"], ["--label", "x" * 81]])
def test_wrong_flags_are_refused(tmp_path: Path, capsys: Printed, more: list[str]) -> None:
    """A length and a label that cannot be are errors with their flag."""
    path = tmp_path / "a.csv"
    path.write_text(reference())
    assert imported(path, "reference-csv", *more) == 1
    assert f"{more[0]}: must be" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: Printed) -> None:
    """A missing file, and a folder in its place, are errors with their names."""
    assert imported(tmp_path / "no.csv", "reference-csv") == 1
    assert f"{tmp_path / 'no.csv'}: cannot be read: No such file" in capsys.readouterr().err
    assert imported(tmp_path, "guidellm") == 1
    assert f"{tmp_path}: cannot be read: Is a directory" in capsys.readouterr().err


@settings(max_examples=200)
@given(st.data())
def test_damage_anywhere_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file that is cut, or in which bytes were changed, is read or refused; nothing else happens."""
    tool, _, text = data.draw(st.sampled_from(WHOLE))
    content = bytearray(text.encode())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    found: object = None
    try:
        found = READERS[tool](path)
    except ResultsError as error:
        found = error.where
    assert found


def test_imported_runs_are_no_part_of_baselines(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing writes below the folder of runs alone."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    path = tmp_path / "a.csv"
    path.write_text(reference())
    words = ["import", "a.csv", "--from", "reference-csv", "--label", "gpu", "--context", "9000"]
    assert main(words) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == [".git", ".kvcache", "a.csv"]
