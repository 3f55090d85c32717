"""Whole pytest sessions of a user's project, on a stub engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.stubs.engine import toml

Project = pytest.Pytester


def configure(project: Project, text: str) -> None:
    """Write the project's kvcache.toml."""
    (project.path / "kvcache.toml").write_text(text, encoding="utf-8")


def run(project: Project, *args: str) -> pytest.RunResult:
    """Run pytest in a process of its own."""
    return project.runpytest_subprocess("-p", "no:cacheprovider", *args)


def run_folder(project: Project) -> Path:
    """Return the folder of the latest run."""
    return max((project.path / ".kvcache" / "runs").iterdir())


def test_without_perf_nothing_runs(project: Project) -> None:
    """A plain `pytest` leaves perf tests out and boots nothing."""
    configure(project, toml())
    result = run(project)
    result.assert_outcomes(deselected=1)
    assert not (project.path / ".kvcache").exists()


def test_without_perf_nothing_heavy_is_imported(project: Project) -> None:
    """A plain `pytest` imports neither pandas nor pydantic nor aiohttp for the plugin's sake."""
    configure(project, toml())
    project.makeconftest(
        """
        import sys
        def pytest_unconfigure():
            heavy = {"pandas", "pydantic", "aiohttp", "requests", "docker", "pyarrow", "psutil"}
            print("HEAVY", sorted(heavy & set(sys.modules)))
        """
    )
    result = run(project, "-p", "no:benchmark", "-p", "no:hypothesispytest")
    result.stdout.fnmatch_lines(["HEAVY []"])


def test_missing_baseline_fails(project: Project) -> None:
    """A cell without a baseline fails and names the command that records one."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "gpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*stub/gpu/50 on gpu has no baseline for this machine*",
            "to record one: pytest -m perf --tier gpu --kv-profile stub --update-baselines",
        ]
    )


def test_record_then_compare(project: Project) -> None:
    """--record-baselines stores missing cells, says so, and the next run compares with them."""
    configure(project, toml())
    first = run(project, "-m", "perf", "--record-baselines")
    first.assert_outcomes(passed=4)
    first.stdout.fnmatch_lines(["*recorded*", "baselines written to *"])
    cells = sorted((project.path / "baselines").rglob("*.json"))
    assert [c.parts[-2] for c in cells] == ["cpu", "gpu", "pnfs", "s3"]
    before = [c.read_bytes() for c in cells]
    second = run(project, "-m", "perf", "--record-baselines")
    second.assert_outcomes(passed=4)
    assert "recorded" not in second.stdout.str()
    assert [c.read_bytes() for c in cells] == before


def test_slower_than_the_baseline_fails(project: Project) -> None:
    """A worse TTFT fails with old, new, ratio, tolerance, the data's folder and the command to refresh."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--record-baselines").assert_outcomes(passed=1)
    (cell,) = (project.path / "baselines").rglob("*.json")
    data = json.loads(cell.read_text())
    data["estimates"]["ttft_mean_s"] /= 100
    cell.write_text(json.dumps(data))
    result = run(project, "-m", "perf", "--tier", "gpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*stub/gpu/50 on gpu regressed: TTFT mean (s) * (+* worse, tolerance 800%)",
            "*metric*baseline*now*ratio*worse by*tolerance*",
            "*TTFT mean (s)*REGRESSED*",
            "rows, counters and logs: *",
            "if the new values are right: pytest -m perf --tier gpu --kv-profile stub --update-baselines",
        ]
    )


def test_update_rewrites_what_was_run(project: Project) -> None:
    """--update-baselines rewrites the cells that ran, prints old and new, and touches no other."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--tier", "cpu", "--record-baselines").assert_outcomes(passed=2)
    gpu, cpu = (next((project.path / "baselines").rglob(f"{t}/*.json")) for t in ("gpu", "cpu"))
    untouched = cpu.read_bytes()
    data = json.loads(gpu.read_text())
    data["estimates"]["ttft_mean_s"] = 123.0
    gpu.write_text(json.dumps(data))
    result = run(project, "-m", "perf", "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*stub/gpu/50*TTFT mean (s)*123*"])
    assert json.loads(gpu.read_text())["estimates"]["ttft_mean_s"] < 1
    assert cpu.read_bytes() == untouched


def test_another_environment_is_incomparable(project: Project) -> None:
    """A baseline taken with other settings fails as incomparable and lists what differs."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--record-baselines").assert_outcomes(passed=1)
    configure(project, toml(qps=25))
    result = run(project, "-m", "perf", "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*not comparable*", "  workload.qps: 20.0 -> 25.0"])


def test_damaged_baseline_is_an_error_without_a_traceback(project: Project) -> None:
    """A damaged baseline file fails with its path and the way out."""
    configure(project, toml())
    run(project, "-m", "perf", "--tier", "gpu", "--record-baselines").assert_outcomes(passed=1)
    (cell,) = (project.path / "baselines").rglob("*.json")
    cell.write_text('{"label": 3')
    result = run(project, "-m", "perf", "--tier", "gpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{cell.name}: is not a baseline*", "*--update-baselines"])
    assert "Traceback" not in result.stdout.str()


def test_unknown_tier_is_a_usage_error(project: Project) -> None:
    """An unknown tier exits with 4 and lists the known ones, before anything boots."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "nvme")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown tier 'nvme'; known: gpu, cpu, s3, pnfs*"])
    assert not (project.path / ".kvcache").exists()


def test_bad_configuration_stops_before_anything_boots(project: Project) -> None:
    """A wrong key in kvcache.toml exits with 4 and names file, key and what is allowed."""
    configure(project, toml(more='\n[tiers.mine]\nkind = "nfs"\n'))
    result = run(project, "-m", "perf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*kvcache.toml: tiers.mine.kind: 'nfs' is not allowed; allowed: *fs*"])


UNAVAILABLE = '\n[tiers.away]\nkind = "fs"\npath = "/nowhere/at/all"\nstand_in = "never"\n'


def test_a_tier_asked_for_by_name_must_run(project: Project) -> None:
    """A tier that --tier names and that cannot run is a failure."""
    configure(project, toml(more=UNAVAILABLE))
    result = run(project, "--tier", "away")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*tier away: cannot run here: /nowhere/at/all is not a folder*"])


def test_a_tier_picked_up_by_default_is_skipped(project: Project) -> None:
    """A tier that nobody named and that cannot run is skipped, with the reason."""
    configure(project, toml(more=UNAVAILABLE))
    result = run(project, "-m", "perf", "-rs", "--record-baselines")
    result.assert_outcomes(passed=4, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*tier away cannot run here: /nowhere/at/all is not a folder*"])


def test_one_boot_a_tier_in_the_order_of_tiers(project: Project) -> None:
    """Tests are grouped by tier across files, and each tier boots once."""
    configure(project, toml(contexts=(20, 50)))
    example = (project.path / "test_multi_round_qa.py").read_text()
    project.makepyfile(test_another=example.replace("test_multi_round_qa(", "test_another("))
    result = run(project, "-m", "perf", "--tier", "cpu", "--tier", "gpu", "-v", "--update-baselines")
    ready = re.findall(r"kvcache: (\w+): 2 servers ready", result.stdout.str())
    assert ready == ["gpu", "cpu"]
    result.assert_outcomes(passed=8)
    tiers = re.findall(r"::\w+\[(gpu|cpu)-\d+\]", result.stdout.str().partition("===== kvcache")[0])
    assert tiers == sorted(tiers, reverse=True)


def test_run_folder_holds_rows_settings_and_counters(project: Project) -> None:
    """A run keeps a row a request as Parquet, with settings, environment and counters beside it."""
    configure(project, toml())
    run(project, "--tier", "pnfs", "--record-baselines").assert_outcomes(passed=1)
    folder = run_folder(project) / "pnfs" / "context-50"
    rows = pd.read_parquet(folder / "requests.parquet")
    facts = json.loads((folder / "run.json").read_text())
    assert (rows["status"] == "ok").all()
    assert set(rows["server"]) == {"vllm-0", "vllm-1"}
    assert len(rows) == facts["estimates"]["finished"] > 10
    assert facts["settings"]["workload"]["users"] == 3
    assert facts["comparability"]["storage.stand_in"] == "true"
    assert set(facts["load"]["counters_before"]) == {"vllm-0", "vllm-1", "lmcache-0", "lmcache-1"}


def test_stand_in_is_named_in_every_output(project: Project) -> None:
    """Where a local folder stands in for pNFS, table, JSON, baseline and failures say so."""
    configure(project, toml())
    run(project, "--tier", "pnfs").stdout.fnmatch_lines(["*stub/pnfs/50 on pnfs (stand-in: *) has no baseline*"])
    result = run(project, "--tier", "pnfs", "--record-baselines")
    result.stdout.fnmatch_lines(["kvcache: pnfs (stand-in: *): 2 servers ready*", "pnfs (stand-in: *) *50*"])
    folder = run_folder(project) / "pnfs" / "context-50"
    assert "(stand-in: " in json.loads((folder / "run.json").read_text())["label"]
    (cell,) = (project.path / "baselines").rglob("*.json")
    assert "(stand-in: " in json.loads(cell.read_text())["label"]


@pytest.mark.parametrize("fault", ["500", "break"])
def test_failed_requests_are_counted_and_void_the_verdict(project: Project, fault: str) -> None:
    """Failed requests are rows with a status; the run is invalid, and no baseline is written from it."""
    configure(project, toml(vllm_args=f'"--stub-fail", "{fault}"', duration_s=0.5))
    result = run(project, "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stub/gpu/50 on gpu is invalid*", "*requests failed*"])
    rows = pd.read_parquet(run_folder(project) / "gpu" / "context-50" / "requests.parquet")
    assert (rows["status"] != "ok").all()
    assert (rows["error"] != "").all()
    assert not list((project.path / "baselines").rglob("*.json"))


def test_a_client_that_sends_late_voids_the_verdict(project: Project) -> None:
    """Requests that leave later than the budget, by the client's own fault, make the run invalid and say so."""
    configure(project, toml().replace("send_late_budget_s = 5", "send_late_budget_s = 1e-9"))
    result = run(project, "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stub/gpu/50 on gpu is invalid*", "*the client sent late: p99 *, budget 0 ms*"])


def test_failed_boot_names_the_first_cause_and_the_log(project: Project) -> None:
    """A server that fails to start ends the boot with its exit code, the first cause and its log."""
    configure(project, toml(vllm_args='"--stub-fail", "boot"'))
    result = run(project, "--tier", "gpu")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*vllm-?.log: vllm-? ended while starting (exit code 1): ValueError: the first cause"])
    assert (run_folder(project) / "gpu" / "logs" / "vllm-0.log").exists()


def test_a_server_that_dies_during_the_run_is_named(project: Project) -> None:
    """When a server dies while it serves, the test fails with its name and log, and keeps the rows."""
    configure(project, toml(duration_s=20, qps=5))
    project.makeconftest(
        """
        import os, signal, threading, pytest
        @pytest.fixture(autouse=True)
        def killer(vllm_pair):
            victim = vllm_pair.handles[0].leader.pid
            threading.Timer(2.0, os.kill, (victim, signal.SIGKILL)).start()
        """
    )
    result = run(project, "--tier", "gpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*vllm-0.log: vllm-0 ended while serving (signal 9)*"])
    rows = pd.read_parquet(run_folder(project) / "gpu" / "context-50" / "requests.parquet")
    assert (rows["status"] == "ok").any()


def test_xdist_is_refused(project: Project) -> None:
    """Perf tests cannot be distributed: -n with -m perf is a usage error with the reason."""
    configure(project, toml())
    result = run(project, "-m", "perf", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cannot be distributed*"])


def test_fixtures_without_perf_say_what_to_do(project: Project) -> None:
    """A test that uses the fixtures without the marker fails with the missing option."""
    configure(project, toml())
    project.makepyfile(test_plain="def test_plain(vllm_pair): pass")
    result = run(project, "test_plain.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*this needs `-m perf` or `--tier NAME` on the command line"])


def test_folder_option_as_a_separate_word_without_ini_is_refused(
    pytester: pytest.Pytester, kvcache_home: Path, stub_engine: Path
) -> None:
    """Where pytest would take the engine's folder for the project's root, the spelling that works is shown."""
    pytester.makepyfile("def test_x(): pass")
    result = run(pytester, "-m", "perf", "--kv-engine", str(stub_engine))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*write --kv-engine={stub_engine} (with =)*"])


def test_secrets_stay_out_of_what_a_run_leaves(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of an S3 tier are in no log, result or output."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE17")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIexample17")
    configure(project, toml(more='\n[tiers.s3]\nendpoint = "http://127.0.0.1:9"\nbucket = "kv"\n'))
    result = run(project, "--tier", "s3", "--record-baselines")
    result.assert_outcomes(passed=1)
    left = [p for p in project.path.rglob("*") if p.is_file()]
    blobs = [result.stdout.str().encode(), *(p.read_bytes() for p in left)]
    assert not any(b"wJalrXUtnFEMIexample17" in blob or b"AKIDEXAMPLE17" in blob for blob in blobs)
