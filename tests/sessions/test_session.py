"""Whole pytest sessions of a user's project, on a stub engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pytest_kvcache.baselines import files, store, update
from pytest_kvcache.campaign import boots as booting
from pytest_kvcache.verdict import rounds
from pytest_kvcache.verdict.cells import requests_path
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import Boot
from tests.projects import NOTHING, PATCH, Project, commit, configure, run, run_apart, run_folder, traces
from tests.stubs.engine import make_engine, toml

UNAVAILABLE = '\n[tiers.away]\nkind = "fs"\npath = "/nowhere/at/all"\nstand_in = "never"\n'
TIMES = ["intended_start_s", "actual_start_s", "first_token_s", "last_token_s"]


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
    result = run_apart(project, "-p", "no:benchmark", "-p", "no:hypothesispytest")
    result.stdout.fnmatch_lines(["HEAVY []"])


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that asks for `recorded` leaves its baselines for the others."""
    return tmp_path_factory.mktemp("recording") / "baselines"


@pytest.fixture
def recorded(project: Project, recording: Path) -> Project:
    """A project with the default configuration of stubs that has recorded a baseline of vLLM alone."""
    configure(project, toml())
    if recording.exists():
        shutil.copytree(recording, project.path / "baselines")
    else:
        run(project, "-m", "perf", "--tier", "gpu", "--record-baselines").assert_outcomes(passed=3)
        shutil.copytree(project.path / "baselines", recording)
    return project


def pad(project: Project, *, faster: float = 1.0, boots: int = 6) -> None:
    """Make gates of baselines of one boot: six boots that spread by 24 %, with a TTFT `faster` times shorter.

    With fewer `boots` they are baselines in the making.
    """
    for path in (project.path / "baselines").rglob("*.json"):
        data = json.loads(path.read_text())
        boot = data["boots"][0]
        data["boots"] = []
        for factor in (0.75, 0.9, 1.0, 1.1, 1.3, 1.45)[:boots]:
            figures = boot["figures"] | {
                m.key: boot["figures"][m.key] * factor for m in DEFAULT_METRICS if m.key in boot["figures"]
            }
            figures["ttft_geomean_s"] /= faster
            data["boots"].append({**boot, "figures": figures})
        path.write_text(json.dumps(data))


def test_a_fault_of_the_plugin_is_shown_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw keeps its traceback in one test; the others of the tier name it and boot nothing."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(booting, "shortened_if_faulty", fail)
    configure(project, toml())
    args = ("-p", "no:cacheprovider", "-p", "no:benchmark", "--tier", "gpu", "--record-baselines")
    result = project.runpytest_inprocess(*args)
    result.assert_outcomes(failed=3)
    output = result.stdout.str()
    assert output.count("servers ready") == 1
    assert output.count('raise ZeroDivisionError("of its own")') == 1
    assert output.count("tier gpu: the measurement ended with ZeroDivisionError: of its own") >= 2


def test_missing_baseline_fails(project: Project) -> None:
    """A cell without a baseline fails and names the command that records one."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "gpu")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*stub/gpu/50 on gpu has no baseline for this machine*",
            "to record one: pytest -m perf --tier gpu --kv-profile stub --update-baselines",
        ]
    )


def test_record_then_compare(recorded: Project, kvcache_home: Path) -> None:
    """--record-baselines stores missing cells and says so; the next run compares with them and changes nothing.

    A run of everything names the baselines that it did not use, and leaves nothing behind; `baselines prune` removes
    those that are no more.
    """
    project = recorded
    (unused,) = (project.path / "baselines").rglob("*.json")
    other = unused.with_name("context-60.json")
    other.write_text(unused.read_text().replace('"context_tokens": 50', '"context_tokens": 60'))
    requests_path(unused).rename(requests_path(other))
    unused.unlink()
    first = run(project, "-m", "perf", "-rs", "--record-baselines")
    first.assert_outcomes(passed=12)
    assert traces(project.path, kvcache_home) == NOTHING
    first.stdout.fnmatch_lines(["*recorded*", "baselines written to *", "*cells have fewer than the 6 boots*"])
    first.stdout.fnmatch_lines(["baselines that this run did not use*", "*gpu/context-60.json"])
    command = [sys.executable, "-m", "pytest_kvcache.cli", "baselines"]
    listed = subprocess.run([*command, "list"], cwd=project.path, capture_output=True, text=True, check=True).stdout
    assert len(re.findall("too small: gates need 6 boots", listed)) == 5
    subprocess.run([*command, "prune", "--yes"], cwd=project.path, check=True, capture_output=True)
    assert not list((project.path / "baselines").rglob("context-60*"))
    cells = sorted((project.path / "baselines").rglob("*.json"))
    assert [c.parts[-2] for c in cells] == ["cpu", "gpu", "pnfs", "s3"]
    pad(project)
    before = [c.read_bytes() for c in cells]
    second = run(project, "-m", "perf", "--record-baselines", "--tier", "gpu", "--tier", "pnfs")
    second.assert_outcomes(passed=6)
    second.stdout.fnmatch_lines(
        ["*after 1 boot: pass: nothing is worse by its margin*", "*a fixed number of boots would*"]
    )
    assert "recorded" not in second.stdout.str()
    assert [c.read_bytes() for c in cells] == before


def test_a_tier_that_cannot_run_here_is_skipped(project: Project) -> None:
    """A tier that nobody named, and that cannot run, is skipped with the reason."""
    configure(project, toml(more=UNAVAILABLE))
    result = run(project, "-m", "perf", "-rs", "-k", "away")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["SKIPPED*tier away cannot run here: /nowhere/at/all is not a folder*"])


def test_recording_adds_boots_until_there_are_enough(project: Project) -> None:
    """With --kv-boots 1, each --record-baselines adds one boot to a baseline that lacks some, requests included."""
    configure(project, toml(boots=2))
    for sessions in (1, 2):
        result = run(project, "--tier", "gpu", "--record-baselines", "--kv-boots", "1")
        result.assert_outcomes(passed=3)
        assert "updated" not in result.stdout.str()
        (cell,) = (project.path / "baselines").rglob("*.json")
        assert len({boot["run_id"] for boot in json.loads(cell.read_text())["boots"]}) == sessions
    (requests,) = (project.path / "baselines").rglob("*.parquet")
    assert set(pd.read_parquet(requests)["boot"]) == {0, 1}


def test_a_baseline_in_the_making_speaks(recorded: Project) -> None:
    """A session that adds a boot shows old -> new of every gate wherever a verdict stands, and passes at any size."""
    configure(recorded, toml(boots=6))
    pad(recorded, faster=100, boots=2)
    recorded.makeconftest(
        """
        def pytest_kvcache_verdict(verdict):
            print("HOOK", verdict.status, verdict.metric.short, verdict.worse_by, verdict.interval, *verdict.reasons)
        """
    )
    args = ("--tier", "gpu", "--record-baselines", "--kv-boots", "1", "--kv-strict", "-rA")
    result = run(recorded, *args, "--junitxml=j.xml", "--benchmark-json=b.json")
    result.assert_outcomes(passed=3)
    line = "TTFT (s): * -> *, worse by +*%, boots so far spread by 13.8% (sd): no gate yet: 3 of 6 boots"
    wide = "TTFT (s): with this session's, boots spread by *: *, and at most +900% may pass: *"
    result.stdout.fnmatch_lines([f"*gpu, context 50: {line}", "HOOK recorded ttft * None no gate yet: 3 of 6 boots *"])
    result.stdout.fnmatch_lines(["*recorded", "*TTFT (s) *+*% *no gate yet: 3 of 6 boots", f"stub/gpu/50: {wide}"])
    result.stdout.fnmatch_lines(
        ["*Captured kvcache call*", line, wide, "*Captured kvcache call*", "decode *: no gate*"]
    )
    row = json.loads((recorded.path / "b.json").read_text())["benchmarks"][0]["extra_info"]
    assert (row["verdict"], row["baseline_boots"], row["baseline_boots_needed"]) == ("recorded", 3, 6)
    assert row["worse_by"] == pytest.approx(row["new"] / row["old"] - 1, rel=1e-2)
    assert row["worse_by"] > 5
    junit = (recorded.path / "j.xml").read_text()
    for name, value in {"verdict": "recorded", "old": row["old"], "new": row["new"], "message": "TTFT (s): "}.items():
        assert f'name="kv_{name}" value="{value}' in junit
    assert junit.count("no gate yet: 3 of 6 boots") >= 3


def test_after_the_sixth_boot_it_gates(recorded: Project) -> None:
    """The session that records the sixth boot says so, and the next one gates and records nothing."""
    configure(recorded, toml(boots=6))
    pad(recorded, boots=5)
    args = ("--tier", "gpu", "--record-baselines", "--kv-boots", "1")
    sixth = run(recorded, *args)
    sixth.assert_outcomes(passed=3)
    sixth.stdout.fnmatch_lines(["*: no gate yet: 6 of 6 boots, the next session is gated"])
    (cell,) = (recorded.path / "baselines").rglob("*.json")
    before = cell.read_bytes()
    seventh = run(recorded, *args)
    seventh.assert_outcomes(passed=3)
    seventh.stdout.fnmatch_lines(["*after 1 boot: pass: nothing is worse by its margin*"])
    assert "no gate yet" not in seventh.stdout.str()
    assert cell.read_bytes() == before


def test_a_verdict_is_adjusted_for_the_machines_speed(project: Project) -> None:
    """Canary readings are in baseline and run.json, and a message tells the machine's part from what is worse."""
    rules = 'canary = true\nadjust_for = "matmul_s"\ncanary_tolerance = 9'
    configure(project, toml().replace("canary = false", rules))
    run(project, "--tier", "gpu", "--record-baselines").assert_outcomes(passed=3)
    facts = json.loads((run_folder(project) / "gpu" / "boot-1" / "context-50" / "run.json").read_text())
    (path,) = (project.path / "baselines").rglob("*.json")
    reading = json.loads(path.read_text())["boots"][0]["canary"]["matmul_s"]
    assert facts["canary"]["matmul_s"] == pytest.approx(reading, rel=1e-5)
    pad(project, faster=30)
    data = json.loads(path.read_text())
    for boot, factor in zip(data["boots"], (0.75, 0.9, 1.0, 1.1, 1.3, 1.45), strict=True):
        boot["canary"]["matmul_s"] *= factor
    path.write_text(json.dumps(data))
    result = run(project, "--tier", "gpu")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*regressed: TTFT (s): * -> *, worse by +* [[]+*, +*] beside *% by the machine's speed, margin *",
            "note: effects are what the machine's speed does not explain: canary matmul_s * -> * s",
        ]
    )


def test_slower_than_the_baseline_fails(recorded: Project) -> None:
    """A worse TTFT fails its gate and no other, with old, new, interval, margin, the data's folder and the command."""
    pad(recorded, faster=30)
    result = run(recorded, "-m", "perf", "--tier", "gpu", "--junitxml=j.xml", "--benchmark-json=b.json")
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(
        [
            "*stub/gpu/50 on gpu regressed: TTFT (s): * -> *, worse by +* [[]+*, +*], margin 500.0%: REGRESSED",
            "*decode throughput per request (tokens/s): *: pass",
            "rows, counters and logs: *",
            "if the new values are right: pytest -m perf --tier gpu --kv-profile stub --update-baselines",
        ]
    )
    junit = (recorded.path / "j.xml").read_text()
    for name in ("verdict", "ratio", "interval_low", "interval_high", "boots", "engine_minutes"):
        assert f'name="kv_{name}"' in junit
    rows = {b["name"]: b for b in json.loads((recorded.path / "b.json").read_text())["benchmarks"]}
    assert {b["extra_info"]["verdict"] for b in rows.values()} == {"regressed", "pass"}
    ttft = rows["test_multi_round_qa[gpu-50-ttft]"]
    measured = pd.read_parquet(run_folder(recorded) / "gpu" / "boot-1" / "context-50" / "requests.parquet")
    expected = (measured["first_token_s"] - measured["actual_start_s"]).mean()
    assert ttft["stats"]["mean"] == pytest.approx(expected, rel=1e-6)
    assert ttft["stats"]["rounds"] == len(measured)
    assert {"ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "cached_share", "interval_low"} <= ttft["extra_info"].keys()


def test_a_regression_says_where_the_time_went(recorded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slower lookup is named as such in failure, report and run.json, with the other parts beside it."""
    (cell,) = (recorded.path / "baselines").rglob("*.json")
    figures = json.loads(cell.read_text())["boots"][0]["figures"]
    assert {"part_ttft_s", "part_outside_s", "part_queue_s", "part_prefill_s"} <= figures.keys()
    pad(recorded)
    monkeypatch.setenv("STUB_LOOKUP", "0.2")
    result = run(recorded, "--tier", "gpu")
    result.assert_outcomes(failed=1, passed=2)
    summary = "mean TTFT +*%: tier: lookup and load from L2 0 -> 200 ms; hits unchanged"
    parts = ["  rest: router, network, HTTP * ms (*", "  prefill and first token * ms (*", "  unexplained *"]
    result.stdout.fnmatch_lines(
        [summary, *parts, "rows, counters and logs: *", f"gpu, context 50: regressed: {summary}"]
    )
    told = json.loads((run_folder(recorded) / "gpu" / "boot-1" / "context-50" / "run.json").read_text())["explanation"]
    old, new = told["parts_s"]["tier: lookup and load from L2"]
    assert (old, new) == pytest.approx((0, 0.2), abs=0.01)
    assert abs(told["unexplained_s"]) < 0.01


@pytest.mark.parametrize("args", [["--benchmark-disable"], ["-p", "no:benchmark"]], ids=["disabled", "left out"])
def test_verdicts_do_not_depend_on_pytest_benchmark(recorded: Project, args: list[str]) -> None:
    """With pytest-benchmark disabled or left out the verdict stands."""
    pad(recorded, faster=30)
    run(recorded, "-m", "perf", "--tier", "gpu", *args).assert_outcomes(failed=1, passed=2)


def test_a_plugin_in_place_of_pytest_benchmark(project: Project) -> None:
    """Where another plugin (pytest-codspeed) brings the fixture `benchmark`, the verdict stands."""
    configure(project, toml())
    project.makepyfile(
        codspeed="""
        import pytest
        @pytest.fixture
        def benchmark():
            return lambda function: function()
        """
    )
    result = run(project, "--tier", "gpu", "--record-baselines", "-p", "no:benchmark", "-p", "codspeed")
    result.assert_outcomes(passed=3)
    assert "warning" not in result.stdout.str()


def test_a_compat_run_keeps_the_references_csv(project: Project) -> None:
    """In mode compat a run's folder has the original's CSV, and its summary by the original's formulas."""
    configure(project, toml().replace("users = 3", 'mode = "compat"\nusers = 3'))
    run(project, "--tier", "gpu", "--record-baselines").assert_outcomes(passed=3)
    folder = run_folder(project) / "gpu" / "boot-1" / "context-50"
    table = pd.read_csv(folder / "summary.csv")
    summary = json.loads((folder / "run.json").read_text())["reference_summary"]
    assert list(table.columns)[:3] == ["prompt_tokens", "generation_tokens", "ttft"]
    assert summary["processing_speed"] == pytest.approx(len(table) / summary["total_s"])


def test_answers_of_one_token(project: Project) -> None:
    """A session whose answers have one token has gates for TTFT and speed; decode is "-", and run.json is JSON."""
    one = toml(more="\n[profiles.stub.gates]\nlimits = { failed = 0 }\n").replace(
        "answer_tokens = 5", "answer_tokens = 1"
    )
    configure(project, one)
    project.makepyfile(
        test_own="""
        import pytest
        from pytest_kvcache import NotMeasuredError

        @pytest.mark.perf
        def test_own(kv_measure):
            result = kv_measure(tier="gpu", context_tokens=50)
            assert result.ttft.mean_s > 0
            assert result.goodput(ttft_s=9, tpot_s=1).share > 0
            assert result.requests["tpot_s"].isna().all()
            for read in (lambda: result.decode_tokens_per_s, lambda: result.itl.mean_s, lambda: result.tpot.p50_s):
                with pytest.raises(NotMeasuredError):
                    read()
        """
    )
    recorded = run(project, "-m", "perf", "--tier", "gpu", "--record-baselines")
    recorded.assert_outcomes(passed=4)
    table = recorded.stdout.str().partition("tier context TTFT mean")[2].splitlines()[1].split()
    assert table[6:8] == ["-", "-"]  # ITL and decode
    assert "nan" not in recorded.stdout.str().lower()
    (told,) = run_folder(project).rglob("run.json")
    figures = json.loads(told.read_text(), parse_constant=pytest.fail)["estimates"]
    assert "ttft_geomean_s" in figures
    assert not [key for key in figures if key.startswith(("decode", "itl", "tpot"))]
    pad(project)
    run(project, "-m", "perf", "--tier", "gpu").assert_outcomes(passed=4)


def test_benchmark_only_and_skip(project: Project) -> None:
    """Gates are benchmarks: --benchmark-only runs them, --benchmark-skip leaves them out and boots nothing."""
    configure(project, toml())
    project.makepyfile(test_other="def test_other(): pass")
    only = run(project, "-m", "perf or not perf", "--tier", "gpu", "--record-baselines", "--benchmark-only")
    only.assert_outcomes(passed=3, skipped=1)
    skip = run(project, "-m", "perf or not perf", "--tier", "gpu", "--benchmark-skip")
    skip.assert_outcomes(passed=1, skipped=3)
    assert "servers ready" not in skip.stdout.str()


def test_a_boot_ends_early_when_it_says_enough(project: Project) -> None:
    """Where boots of the baseline spread widely a run ends at a whole round, and both are cut to the same rounds."""
    configure(project, toml(duration_s=4))
    run(project, "--tier", "gpu", "--record-baselines").assert_outcomes(passed=3)
    root = project.path / "baselines"
    (old,) = files.readable(files.scan(root))
    rows = store.read_requests(root, old)
    boots = []
    for factor in (0.7, 0.8, 0.95, 1.05, 1.2, 1.4):  # clocks that run at other speeds: every metric spreads
        slower = rows.copy()
        slower[TIMES] *= factor
        boots.append((Boot(rounds.judged_figures(slower)), slower))
    write = update.record(
        old.address,
        boots,
        label=old.label,
        run_id="wide",
        recorded="2026-11-24",
        comparability=old.comparability,
        versions=old.versions,
        workload=old.workload,
        round_s=old.round_s,
    )
    store.write_all(root, [write])
    result = run(project, "--tier", "gpu")
    result.assert_outcomes(passed=3)
    folder = run_folder(project) / "gpu" / "boot-1" / "context-50"
    ended_after = json.loads((folder / "run.json").read_text())["load"]["stopped_after_rounds"]
    assert rounds.LEAST_ROUNDS <= ended_after < 4 * 20 / 3
    kept = pd.read_parquet(folder / "requests.parquet")
    assert len(kept) == ended_after * 3
    assert (kept["status"] == "ok").all()


def test_update_rewrites_what_was_run(recorded: Project) -> None:
    """--update-baselines rewrites the cells that ran, prints old and new with intervals, and touches no other."""
    project = recorded
    configure(project, toml(boots=2))
    (gpu,) = (project.path / "baselines").rglob("*.json")
    shutil.copytree(gpu.parent, gpu.parents[1] / "cpu")
    cpu = gpu.parents[1] / "cpu" / gpu.name
    untouched = cpu.read_bytes()
    data = json.loads(gpu.read_text())
    data["boots"][0]["figures"]["ttft_geomean_s"] = 123.0
    gpu.write_text(json.dumps(data))
    result = run(project, "-m", "perf", "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*stub/gpu/50*2*TTFT (s)*123* … *"])
    assert [boot["figures"]["ttft_geomean_s"] < 1 for boot in json.loads(gpu.read_text())["boots"]] == [True, True]
    assert cpu.read_bytes() == untouched


def test_update_refuses_a_dirty_or_too_small_run(project: Project) -> None:
    """--update-baselines refuses boots of uncommitted code, and fewer boots than the profile asks for."""
    configure(project, toml())
    commit(project)
    configure(project, toml(more="\n# changed\n"))
    result = run(project, "-m", "perf", "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*was not made a baseline:", "*uncommitted changes: kvcache.toml"])
    subprocess.run(["git", "checkout", "-q", "kvcache.toml"], cwd=project.path, check=True)
    configure(project, toml(boots=3))
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x", "commit", "-qam", "y"], cwd=project.path, check=True
    )
    result = run(project, "-m", "perf", "--tier", "gpu", "--update-baselines", "--kv-boots", "1")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*1 boots are too few: a baseline needs 3"])
    assert not list((project.path / "baselines").rglob("*.json"))


@pytest.mark.parametrize("strict", [False, True])
def test_another_environment_is_incomparable(recorded: Project, strict: bool) -> None:
    """A baseline taken with other settings is incomparable, lists what differs, and fails only under --kv-strict."""
    configure(recorded, toml(qps=25))
    result = run(recorded, "-m", "perf", "--tier", "gpu", "--kv-strict" if strict else "--kv-no-strict")
    if strict:
        result.assert_outcomes(failed=3)
        result.stdout.fnmatch_lines(["*not comparable*", "  workload.qps: 20.0 -> 25.0"])
    else:
        assert result.ret == 0
        result.stdout.fnmatch_lines(["INCOMPARABLE *gpu-50-ttft* - *workload.qps: 20.0 -> 25.0*", "*3 incomparable*"])


def test_in_ci_undecided_is_a_failure(recorded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CI is set, a test without a decision fails; elsewhere it is shown as what it is."""
    monkeypatch.delenv("CI", raising=False)
    assert run(recorded, "-m", "perf", "--tier", "gpu").ret == 0
    monkeypatch.setenv("CI", "true")
    run(recorded, "-m", "perf", "--tier", "gpu").assert_outcomes(failed=3)


def test_two_engines_against_each_other(project: Project, stub_engine: Path) -> None:
    """--kv-against boots both in turn, A B B A, needs no baseline, and decides on the paired differences."""
    configure(project, toml())
    result = run(project, "--tier", "gpu", f"--kv-against={stub_engine}")
    result.assert_outcomes(passed=3)
    order = re.findall(r"gpu \[(A|B)\]: 2 servers ready", result.stdout.str())
    assert order[:4] == ["A", "B", "B", "A"]
    result.stdout.re_match_lines([r".*B against A, context 50, after \d pairs: pass: .*; [\d.]+ engine minutes.*"])
    assert not list((project.path / "baselines").rglob("*.json"))


def test_a_configuration_against_an_earlier_one(project: Project) -> None:
    """--kv-against git:REVISION holds the working kvcache.toml's tier against that revision's."""
    configure(project, toml(vllm_args='"--stub-ttft", "0.08"'))
    commit(project)
    configure(project, toml())
    result = run(project, "--tier", "gpu", "--kv-against", "git:HEAD")
    # Whichever gate is decided first ends it: that may leave TTFT itself undecided.
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "B against A, stub/gpu/50 on gpu regressed: *",
            "*mean TTFT +*%: prefill and first token 5 -> 80 ms; *",
            "stay with A, or *",
        ]
    )
    assert "--update-baselines" not in result.stdout.str()
    unknown = run(project, "--tier", "gpu", "--kv-against", "git:nothing")
    assert unknown.ret == pytest.ExitCode.USAGE_ERROR
    unknown.stderr.fnmatch_lines(["*git knows no revision 'nothing'*"])


@pytest.mark.parametrize(
    ("where", "error"),
    [("chart.draw", "OSError(28, 'No space left on device')"), ("series.read", "ConfigError('unlike workload.qps')")],
)
def test_a_chart_that_cannot_be_drawn_hides_no_verdict(project: Project, where: str, error: str) -> None:
    """Where the disk is full, or arms of an A/B are no points of one chart, a line says so and the summary goes on."""
    configure(project, toml(contexts=(50, 60)))
    project.makeconftest(
        f"""{PATCH}
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.report import chart, series

def fail(*_):
    raise {error}

patch.setattr({where.partition(".")[0]}, "{where.partition(".")[2]}", fail)
"""
    )
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=6)
    said = error.split("'")[1]
    result.stdout.fnmatch_lines([f"no chart: *{said}*", "baselines written to *", "*engine minutes*"])


@pytest.mark.parametrize("how", ["option", "marker"])
def test_running_again_until_it_passes_is_refused(project: Project, how: str) -> None:
    """Reruns of perf tests, by option or by marker, are a usage error with the reason."""
    configure(project, toml())
    if how == "option":
        project.makeconftest("def pytest_addoption(parser): parser.addoption('--reruns', type=int)")
        result = run(project, "-m", "perf", "--reruns", "2")
    else:
        file = project.path / "test_multi_round_qa.py"
        file.write_text(file.read_text().replace("def test_multi", "@pytest.mark.flaky(reruns=2)\ndef test_multi"))
        result = run(project, "-m", "perf", "-o", "markers=flaky")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*a verdict that is repeated until it passes is none*"])


def test_damaged_baseline_is_an_error_without_a_traceback(recorded: Project) -> None:
    """A damaged baseline, its table of requests too, fails with path and way out, before anything boots."""
    (cell,) = (recorded.path / "baselines").rglob("*.json")
    requests, whole = requests_path(cell), cell.read_text()
    for damaged, told in ((cell, "*context-50.json: is not a baseline*"), (requests, "*are not there*")):
        cell.write_text('{"label": 3' if damaged == cell else whole)
        if damaged == requests:
            requests.unlink()
        result = run(recorded, "-m", "perf", "--tier", "gpu")
        result.assert_outcomes(failed=3)
        result.stdout.fnmatch_lines([told, "*--update-baselines"])
        assert "Traceback" not in result.stdout.str()
        assert "servers ready" not in result.stdout.str()


def test_unknown_tier_is_a_usage_error(project: Project) -> None:
    """An unknown tier exits with 4 and lists the known ones, once, before anything boots."""
    configure(project, toml())
    result = run(project, "-m", "perf", "--tier", "nvme")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown tier 'nvme'; known: gpu, cpu, s3, pnfs*"])
    assert "unknown tier" not in result.stdout.str()
    assert not (project.path / ".kvcache").exists()


def test_bad_configuration_stops_before_anything_boots(project: Project) -> None:
    """A wrong key in kvcache.toml exits with 4 and names file, key and what is allowed."""
    configure(project, toml(more='\n[tiers.mine]\nkind = "nfs"\n'))
    result = run(project, "-m", "perf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*kvcache.toml: tiers.mine.kind: 'nfs' is not allowed; allowed: *fs*"])


def test_a_tier_asked_for_by_name_must_run(project: Project) -> None:
    """A tier that --tier names and that cannot run is a failure."""
    configure(project, toml(more=UNAVAILABLE))
    result = run(project, "--tier", "away")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*tier away: cannot run here: /nowhere/at/all is not a folder*"])


def test_storage_that_fails_the_preflight_stops_before_a_boot(project: Project) -> None:
    """A tier whose folder cannot be written to fails with what was found and the command that says more."""
    configure(project, toml(more='\n[tiers.full]\nkind = "fs"\npath = "/sys/kernel"\n'))
    result = run(project, "--tier", "full")
    result.assert_outcomes(errors=3)
    output = result.stdout.str()
    assert "tier full: its storage fails the preflight: writable:" in output
    assert "pytest-kvcache doctor --tier full" in output
    assert "servers ready" not in output


def test_an_engine_that_is_too_old_stops_before_a_boot(project: Project, tmp_path: Path) -> None:
    """What a tier cannot do without is looked for in the versions of both engines of an A/B, before either boots."""
    old = make_engine(tmp_path / "old", vllm="0.24.0", lmcache="0.4.4")
    configure(project, toml(more='\n[tiers.folder]\nkind = "fs"\npath = "/tmp"\n'))
    for option in ("engine", "against"):
        result = run(project, "--tier", "folder", f"--kv-{option}={old}")
        result.assert_outcomes(errors=3)
        output = result.stdout.str()
        assert 'too old for this tier in lmcache_mode = "mp": LMCache 0.4.4: no /healthcheck and /metrics' in output
        assert "install LMCache 0.4.6 or newer" in output
        assert "servers ready" not in output


def test_what_an_older_engine_does_not_tell_is_said(project: Project, tmp_path: Path) -> None:
    """An engine without what only sharpens a measurement runs; report, run.json and the command line show it."""
    old = make_engine(tmp_path / "old", vllm="0.24.0", lmcache="0.5.6")
    configure(project, toml())
    result = run(project, "--tier", "gpu", f"--kv-engine={old}", "--record-baselines")
    result.assert_outcomes(passed=3)
    line = "vLLM 0.24.0: no --enable-per-request-metrics; needs 0.25.0; lost: queue time and TTFT of the server"
    result.stdout.fnmatch_lines([f"gpu: older engine: {line}*"])
    facts = json.loads((run_folder(project) / "gpu" / "boot-1" / "context-50" / "run.json").read_text())
    assert facts["engine_lacks"][0].startswith(line)
    assert "--enable-per-request-metrics" not in facts["commands"]["vllm-0"]
    assert "--enable-prompt-tokens-details" in facts["commands"]["vllm-0"]


def test_one_boot_a_tier_in_the_order_of_tiers(project: Project) -> None:
    """Tests are grouped by tier across files, and each tier boots once."""
    configure(project, toml(contexts=(20, 50)))
    example = (project.path / "test_multi_round_qa.py").read_text()
    project.makepyfile(test_another=example.replace("test_multi_round_qa(", "test_another("))
    result = run(project, "-m", "perf", "--tier", "cpu", "--tier", "gpu", "-v", "--update-baselines")
    ready = re.findall(r"kvcache: (\w+): 2 servers ready", result.stdout.str())
    assert ready == ["gpu", "cpu"]
    result.assert_outcomes(passed=24)
    tiers = re.findall(r"::\w+\[(gpu|cpu)-\d+-\w+\]", result.stdout.str().partition("===== kvcache")[0])
    assert tiers == sorted(tiers, reverse=True)


def test_run_folder_holds_rows_settings_and_counters(project: Project) -> None:
    """A run keeps a row a request as Parquet, with settings, environment and counters beside it."""
    configure(project, toml())
    run(project, "--tier", "pnfs", "--record-baselines").assert_outcomes(passed=3)
    folder = run_folder(project) / "pnfs" / "boot-1" / "context-50"
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
    folder = run_folder(project) / "pnfs" / "boot-1" / "context-50"
    assert "(stand-in: " in json.loads((folder / "run.json").read_text())["label"]
    (cell,) = (project.path / "baselines").rglob("*.json")
    assert "(stand-in: " in json.loads(cell.read_text())["label"]


@pytest.mark.parametrize("fault", ["500", "break"])
def test_failed_requests_are_counted_and_void_the_verdict(project: Project, fault: str) -> None:
    """Failed requests are rows with a status; the run is invalid, and no baseline is written from it."""
    configure(project, toml(vllm_args=f'"--stub-fail", "{fault}"', duration_s=0.5))
    result = run(project, "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*stub/gpu/50 on gpu is invalid*", "*requests failed*"])
    rows = pd.read_parquet(run_folder(project) / "gpu" / "boot-1" / "context-50" / "requests.parquet")
    assert (rows["status"] != "ok").all()
    assert (rows["error"] != "").all()
    assert not list((project.path / "baselines").rglob("*.json"))


def test_a_client_that_sends_late_voids_the_verdict(project: Project) -> None:
    """Requests that leave later than the budget, by the client's own fault, make the run invalid and say so."""
    configure(project, toml().replace("send_late_budget_s = 5", "send_late_budget_s = 1e-9"))
    result = run(project, "--tier", "gpu", "--update-baselines")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*stub/gpu/50 on gpu is invalid*", "*the client sent late: p99 *, budget 0 ms*"])


def test_failed_boot_names_the_first_cause_and_the_log(project: Project) -> None:
    """A server that fails to start ends the boot with its exit code, the first cause and its log."""
    configure(project, toml(vllm_args='"--stub-fail", "boot"'))
    result = run(project, "--tier", "gpu")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*vllm-?.log: vllm-? ended while starting (exit code 1): ValueError: the first cause"])
    assert (run_folder(project) / "gpu" / "boot-1" / "logs" / "vllm-0.log").exists()


def test_a_server_that_dies_during_the_run_is_named(project: Project) -> None:
    """When a server dies while it serves, the test fails with its name and log, and keeps the rows."""
    configure(project, toml(duration_s=20, qps=5, vllm_args='"--stub-fail", "die"'))
    result = run(project, "--tier", "gpu")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*vllm-?.log: vllm-? ended while serving (exit code 9)*"])
    rows = pd.read_parquet(run_folder(project) / "gpu" / "boot-1" / "context-50" / "requests.parquet")
    assert (rows["status"] == "ok").any()


def test_a_server_that_is_killed_is_said_to_be(project: Project) -> None:
    """A server that SIGKILL ended is named, with where to look and not with the last line of its log."""
    configure(project, toml(duration_s=20, qps=5, vllm_args='"--stub-fail", "killed"'))
    result = run(project, "--tier", "gpu")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*vllm-?.log: vllm-? ended while serving: it was killed (SIGKILL)",
            "*OOM killer*",
            f"rows, counters and logs: {run_folder(project)}",
        ]
    )


def test_a_shared_pair_and_a_measurement_do_not_run_side_by_side(project: Project) -> None:
    """Tests that talk to a pair come after those that measure; one that asks for both is told so."""
    configure(project, toml())
    example = (project.path / "test_multi_round_qa.py").read_text()
    project.makepyfile(
        test_aaa="""
        import pytest, requests
        @pytest.mark.perf
        def test_talk(kv_tier, vllm_pair):
            assert requests.get(vllm_pair.base_url.removesuffix("/v1") + "/health").status_code == 200
        """,
        test_both=example.replace("kv_context: int,", "kv_context: int, vllm_pair: object,"),
    )
    result = run(project, "--tier", "gpu", "--record-baselines", "test_aaa.py", "test_multi_round_qa.py", "-v")
    result.assert_outcomes(passed=4)
    names = re.findall(r"::(test_talk|test_multi_round_qa)\[", result.stdout.str().partition("===== kvcache")[0])
    assert list(dict.fromkeys(names)) == ["test_multi_round_qa", "test_talk"]
    result = run(project, "--tier", "gpu", "--record-baselines", "test_both.py", "-k", "ttft")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*multi_round_qa boots pairs of its own, and would measure beside the one of *"])


def test_xdist_is_refused(project: Project) -> None:
    """Perf tests cannot be distributed: -n with -m perf is a usage error with the reason."""
    configure(project, toml())
    result = run(project, "-m", "perf", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*cannot be distributed*"])


def test_fixtures_without_perf_say_what_to_do(project: Project) -> None:
    """A test that uses the fixtures without the marker fails with the missing option."""
    configure(project, toml())
    project.makepyfile(test_plain="def test_plain(vllm_pair): pass")
    result = run(project, "test_plain.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*this needs @pytest.mark.perf and `-m perf`, or `--tier NAME` on the command line"])


def test_folder_option_as_a_separate_word_without_ini_is_refused(
    pytester: pytest.Pytester, kvcache_home: Path, stub_engine: Path
) -> None:
    """Where pytest would take the engine's folder for the project's root, the spelling that works is shown."""
    pytester.makepyfile("import pytest\n@pytest.mark.perf\ndef test_x(kv_profile): pass")
    result = run(pytester, "-m", "perf", "--kv-engine", str(stub_engine))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*write --kv-engine={stub_engine} (with =)*"])


def test_secrets_stay_out_of_what_a_run_leaves(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of an S3 tier are in no log, result or output, also where the service cannot be reached."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE17")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIexample17")
    configure(project, toml(more='\n[tiers.s3]\nendpoint = "http://localhost:9"\nbucket = "kv-cache"\n'))
    result = run(project, "--tier", "s3", "--record-baselines")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*tier s3: its storage fails the preflight: endpoint: *kv-cache.localhost*"])
    left = [p for p in project.path.rglob("*") if p.is_file()]
    blobs = [result.stdout.str().encode(), *(p.read_bytes() for p in left)]
    assert not any(b"wJalrXUtnFEMIexample17" in blob or b"AKIDEXAMPLE17" in blob for blob in blobs)


def test_the_command_that_records_is_one_that_works(project: Project) -> None:
    """Where another plugin took `--update-baselines` and `--tier`, a failure names the options that are left."""
    configure(project, toml(duration_s=0.3))
    project.makeconftest(
        "def pytest_addoption(parser):\n    parser.addoption('--update-baselines')\n    parser.addoption('--tier')\n"
    )
    result = run(project, "--kv-tier", "gpu", "-k", "ttft")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(["*pytest -m perf --kv-tier gpu --kv-profile stub --kv-update-baselines"])
