"""Whole sessions on a stub engine behind other balancers: what is recorded of them, and what is told."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pytest_kvcache.engine.environment import on_path
from pytest_kvcache.load.turns import turn_of
from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import toml


def with_balancer(text: str) -> str:
    """Return a kvcache.toml whose profile has a balancer."""
    return toml(more=f"\n[profiles.stub.balancer]\n{text}\n")


def test_without_a_balancer_the_client_takes_turns(project: Project) -> None:
    """No balancer is started, rows name the server of their turn, and the run says so."""
    configure(project, with_balancer('kind = "none"'))
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    (path,) = run_folder(project).rglob("run.json")
    facts = json.loads(path.read_text())
    assert set(facts["commands"]) == {"vllm-0", "vllm-1"}
    assert facts["comparability"]["serving.balancer"] == "none turns"
    assert facts["balancer"]["latency"] is None
    rows = pd.read_parquet(path.parent / "requests.parquet")
    turns = [f"vllm-{turn_of(u, r, 2)}" for u, r in zip(rows["user"], rows["round"], strict=True)]
    assert list(rows["server"]) == turns
    result.stdout.fnmatch_lines(
        ["*; balancer none turns; machine*", "balancer of gpu, context 50: none turns (servers take turns*): vllm-0 *"]
    )


def test_the_balancers_own_latency_is_measured_once_a_session(project: Project) -> None:
    """All loads of a session have the latency of its first boot, and the details name it."""
    configure(project, toml(contexts=(50, 60)))
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=6)
    found = [json.loads(path.read_text()) for path in run_folder(project).rglob("run.json")]
    first, second = (facts["balancer"] for facts in found)
    assert first == second
    assert first["latency"]["pairs"] == sum(first["latency"]["servers"].values()) == 24
    assert (first["kind"], first["policy"], first["version"]) == ("vllm-router", "round_robin", "0.stub")
    assert found[0]["proof"]["routing"]["promises"] == "turns"
    line = "balancer vllm-router round_robin 0.stub: * ms for a small request (*"
    result.stdout.fnmatch_lines([f"kvcache: {line}", line])
    result.stdout.no_fnmatch_line("*was not measured*")


def test_a_broken_promise_makes_a_run_invalid(project: Project) -> None:
    """A router that is said to keep users on one server, and does not, makes the run invalid with that reason."""
    configure(project, with_balancer('policy = "consistent_hash"'))  # the stub takes turns whatever it is told
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*vllm-router consistent_hash promises that all requests of a user go to one server*"])
    assert not list((project.path / "baselines").rglob("*.json"))


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_session_behind_a_real_balancer(project: Project, kind: str) -> None:
    """Debian's own programs are started as processes of the run, and nothing is left of them."""
    if on_path(kind) is None:
        pytest.skip(f"{kind} is not on this machine")
    configure(project, with_balancer(f'kind = "{kind}"'))
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    (path,) = run_folder(project).rglob("run.json")
    facts = json.loads(path.read_text())
    assert facts["commands"][kind][0].endswith(kind)
    assert facts["comparability"]["serving.balancer_version"][0].isdigit()
    assert facts["faults"] == []
