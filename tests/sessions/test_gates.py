"""Exact gates, gains, limits and metrics of a profile's own, in whole sessions."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import toml

GATES = """
[profiles.stub.gates]
tokens = 0.0
limits = { ttft_p50_s = 3.0, failed = 0, cached_share = 0.9, goodput_share = 0.5 }
slo = { ttft_s = 4.0 }
"""


def test_one_boot_decides_exact_gates_and_limits(project: Project) -> None:
    """Each gate is a test of its own: limits hold from the first session, tokens as soon as one boot is recorded."""
    # One user asks in one order, however busy the machine is.
    configure(project, toml(boots=2, more=GATES).replace("users = 3\nrounds = 8", "users = 1\nrounds = 60"))
    first = run(project, "--tier", "gpu", "--record-baselines", "--kv-boots", "1")
    first.assert_outcomes(passed=7, failed=1)
    first.stdout.fnmatch_lines(
        [
            "stub/gpu/50 on gpu regressed: share of prompt tokens from caches: 0.*, beyond its limit of at least 0.9",
            "a limit is set in gates.limits of the profile; no baseline moves it",
            "FAILED *[[]gpu-50-limit-cached_share]*",
        ]
    )
    (cell,) = (project.path / "baselines").rglob("*.json")
    data = json.loads(cell.read_text())
    account = data["boots"][0]["account"]
    account["tokens"] = {"computed": account["tokens"]["computed"] - 7, "device": account["tokens"]["device"] + 7}
    cell.write_text(json.dumps(data))
    before = cell.read_bytes()
    second = run(project, "--tier", "gpu", "-k", "tokens")
    second.assert_outcomes(failed=1, deselected=7)
    second.stdout.fnmatch_lines(
        [
            "stub/gpu/50 on gpu regressed: where prompt tokens came from: computed * -> * (+7); from the device *(-7)*",
            "if the new values are right: pytest -m perf --tier gpu --kv-profile stub --update-baselines",
        ]
    )
    third = run(project, "--tier", "gpu", "--record-baselines", "--kv-boots", "1")
    third.stdout.fnmatch_lines(["*was not made a baseline:", "*computed * -> * (+7)*"])
    assert cell.read_bytes() == before
    configure(project, toml(more=GATES).replace("users = 3\nrounds = 8", "users = 1\nrounds = 60"))
    run(project, "--tier", "gpu", "-k", "tokens", "--update-baselines").assert_outcomes(passed=1, deselected=7)
    assert cell.read_bytes() != before


def test_a_tier_is_held_against_another_in_the_same_session(project: Project) -> None:
    """Both tiers are booted in turn, A B B A; all gains of the two are decided on these boots, and need no baseline."""
    table = '"cpu over gpu" = { speed = 0.000001, ttft = 0.000001 }\n"s3 over gpu" = { ttft = 1 }'
    gains = f"\n[profiles.stub.gates.gains]\n{table}\n"
    configure(project, toml(duration_s=0.3, more=gains))
    report = project.path / "junit.xml"
    options = ("--kv-boots", "4", "--kv-strict", "-v", f"--junitxml={report}")
    result = run(project, "--tier", "cpu", "-k", "gain", *options)
    result.assert_outcomes(passed=1, failed=1, deselected=3)
    result.stdout.fnmatch_lines(
        [
            "*[[]cpu-50-gain-speed-over-gpu] PASSED*",
            "*TTFT (s) of cpu over gpu: * times [[]*, *] after 2 pairs, at most 1e-06 is asked*",
            "the ratio that is asked is set in gates.gains of the profile",
            "exact gates, limits and gains:",
            "*cpu over gpu, context 50: pass: processing speed*",
        ]
    )
    boots = [p.relative_to(run_folder(project)) for p in run_folder(project).glob("*/gainboot-*")]
    assert sorted(map(str, boots)) == ["cpu/gainboot-1", "cpu/gainboot-2", "gpu/gainboot-1", "gpu/gainboot-2"]
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - written by our own pytest
    for case in cases:
        told = {each.get("name"): each.get("value", "") for each in case.iter("property")}
        assert (told["kv_boots"], float(told["kv_engine_minutes"]) > 0) == ("4", True)
        assert 0 < float(told["kv_ratio_low"]) < float(told["kv_ratio"]) < float(told["kv_ratio_high"])


def test_too_few_boots_for_a_gain_are_said(project: Project) -> None:
    """--kv-boots counts the boots of both tiers: fewer than two pairs decide nothing, and boot nothing more."""
    configure(project, toml(duration_s=0.3, more='\n[profiles.stub.gates.gains]\n"cpu over gpu" = { speed = 0.5 }\n'))
    result = run(project, "--tier", "cpu", "-k", "gain", "--kv-boots", "1")
    result.stdout.fnmatch_lines(
        ["INCONCLUSIVE *--kv-boots 1 leaves no pairs to compare: allow 4 or more, of both tiers"]
    )
    assert not list(run_folder(project).glob("*/gainboot-*"))


def test_a_gain_over_an_unknown_tier_is_a_usage_error(project: Project) -> None:
    """A tier that is not there is named before anything boots."""
    configure(project, toml(more='\n[profiles.stub.gates.gains]\n"pnfs over nvme" = { ttft = 0.5 }\n'))
    result = run(project, "--tier", "gpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*gates.gains.pnfs over nvme: unknown tier 'nvme'; known: gpu, cpu, s3, pnfs*"])


def test_a_gain_that_baselines_do_not_have_stops_before_the_boot(project: Project) -> None:
    """A gain that is to be the baselines' own names the missing one first, unless the session records it."""
    configure(project, toml(more='\n[profiles.stub.gates.gains]\n"cpu over gpu" = { speed = "baseline" }\n'))
    result = run(project, "--tier", "cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*stub/cpu/50: has no baseline on this machine, and its gain*", "*record it*"])
    assert not list((project.path / ".kvcache").rglob("*.log"))
    run(project, "--tier", "cpu", "-k", "not gain").assert_outcomes(failed=3, deselected=1)


def test_boots_beside_other_work_are_allowed_only_where_they_are_stored(project: Project) -> None:
    """--kv-allow-suspect in a session that stores nothing is refused with the options that do."""
    configure(project, toml())
    result = run(project, "--tier", "gpu", "--kv-allow-suspect")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--kv-allow-suspect: nothing is stored*: add --update-baselines or --record-base*"])


def test_a_profile_is_gated_by_metrics_of_its_own(project: Project) -> None:
    """Tests, ids and baselines follow `gates.metrics`; a tier without a shared storage skips its throughput."""
    metrics = 'metrics = ["itl_p50", "requests_per_s", "goodput_share", "l2_load_bytes_per_s"]\nslo = { ttft_s = 9 }'
    configure(project, toml(more=f"\n[profiles.stub.gates]\n{metrics}\n"))
    first = run(project, "--tier", "gpu", "--update-baselines", "-v")
    first.assert_outcomes(passed=3, skipped=1)
    first.stdout.fnmatch_lines(["*[[]gpu-50-itl_p50]*", "*[[]gpu-50-requests_per_s]*", "*[[]gpu-50-goodput_share]*"])
    first.stdout.fnmatch_lines(["*boots run to their end, since itl_p50_s, requests_per_s*"])
    again = run(project, "--tier", "gpu", "--benchmark-json=rows.json")
    again.assert_outcomes(skipped=1)
    assert sum(line.startswith("INCONCLUSIVE ") for line in again.outlines) == 3
    rows = json.loads((project.path / "rows.json").read_text())["benchmarks"]
    assert [row["group"] for row in rows] == ["ITL", "processing speed: seconds per request"]
    stored = json.loads(next((project.path / "baselines").rglob("context-50.json")).read_text())
    assert stored["comparability"]["gates.slo"] == "ttft_s 9"
    assert stored["boots"][0]["figures"]["goodput_share"] == 1.0


def test_a_tier_that_lacks_an_optional_figure_adds_boot_to_boot(project: Project) -> None:
    """What neither the boots that are there nor the new one have keeps no second boot from being added."""
    metrics = 'metrics = ["itl_p50", "l2_load_bytes_per_s"]'
    configure(project, toml(boots=3, more=f"\n[profiles.stub.gates]\n{metrics}\n"))
    for count in (1, 2):
        run(project, "--tier", "gpu", "--record-baselines", "--kv-boots", "1").assert_outcomes(passed=1, skipped=1)
        stored = json.loads(next((project.path / "baselines").rglob("context-50.json")).read_text())
        assert len(stored["boots"]) == count


def test_a_broken_boot_skips_no_gate(project: Project) -> None:
    """A figure that is missing since the boot is broken is no figure that the tier may lack: its test fails too."""
    metrics = 'metrics = ["ttft", "l2_load_bytes_per_s"]'
    more = f"\n[profiles.stub.gates]\n{metrics}\n"
    configure(project, toml(vllm_args='"--stub-fail", "500"', duration_s=0.5, more=more))
    run(project, "--tier", "gpu").assert_outcomes(failed=2)
