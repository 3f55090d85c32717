"""Whole sessions that attach to a stub pair which the test has started: nothing is booted, and others are seen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import requests

from pytest_kvcache.load.worker import CLOCK_STARTS
from tests.projects import NOTHING, Project, configure, run, run_folder, traces
from tests.stubs.engine import toml
from tests.stubs.server import StubPair, stub_pair

pytestmark = pytest.mark.long

KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubPair]:
    """A pair that stands."""
    with stub_pair(tmp_path_factory.mktemp("pair")) as standing:
        yield standing


def table(pair: StubPair, *, tier: str = "gpu", more: str = "") -> str:
    """Return the table of kvcache.toml for a pair."""
    servers = "\n".join(f'{name} = "{url}"' for name, url in pair.servers.items())
    return f'\n[attach.{tier}]\nbase_url = "{pair.router}"\n{more}\n[attach.{tier}.servers]\n{servers}\n'


def attach(project: Project, *args: str) -> pytest.RunResult:
    """Run the project's perf test attached, on tier gpu."""
    return run(project, "--kv-launcher", "attach", "--tier", "gpu", *args)


def facts(project: Project) -> dict[str, object]:
    """Return what the latest run keeps of its first load."""
    (path,) = (run_folder(project) / "gpu").rglob("run.json")
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def during(project: Project, act: Callable[[], object]) -> threading.Thread:
    """Do something once measured requests are sent."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        logs = project.path / ".kvcache"
        while not any(CLOCK_STARTS in path.read_text() for path in logs.rglob("load.log")):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        time.sleep(0.6)  # the clock has a lead, so that every load process is ready
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def ask(url: str, *, words: int, times: int = 1) -> None:
    """Send prompts of another client."""
    body = {
        "messages": [{"role": "user", "content": "word " * words}],
        "max_tokens": 1,
        "model": "stub",
        "stream": True,
    }
    for _ in range(times):
        requests.post(f"{url}/v1/chat/completions", json=body, timeout=30).raise_for_status()


def test_a_deployment_is_measured_and_left_as_it_is(project: Project, kvcache_home: Path, pair: StubPair) -> None:
    """Attached, nothing is started or left, the baseline is the deployment's, and a second pass compares with it."""
    configure(project, toml(more=table(pair)))
    result = attach(project, "--record-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            f"kvcache: tier gpu is attached: {pair.router}; nothing of it is booted, emptied or ended*",
            "*attached to *(2 servers): caches are as others left them, every prompt has a new salt*",
            "*probes: new to all caches; vllm-0's prompt on vllm-1: 0 of * tokens cached*",
            "*not looked at: a cold start: the deployment stood before*",
        ]
    )
    assert all(process.poll() is None for process in pair.processes.values())
    assert traces(project.path, kvcache_home) == NOTHING
    assert [path.name for path in (run_folder(project) / "gpu" / "boot-1").rglob("*.log")] == ["load.log"]
    (cell,) = (project.path / "baselines").rglob("context-50.json")
    assert cell.parts[-3].startswith("attached-127-0-0-1-")
    keys = json.loads(cell.read_text())["comparability"]
    assert keys["serving.launcher"] == "attach"
    assert keys["deployment.servers"] == "2"
    assert not [key for key in keys if key.startswith("hardware.")]
    said = facts(project)
    assert said["launcher"]["base_url"] == pair.router  # type: ignore[index]
    assert said["proof"]["other_traffic"] == {"share_of_prompt_tokens": 0.0, "lines": []}  # type: ignore[index]
    again = attach(project, "--kv-strict")
    again.stdout.fnmatch_lines(["*stub/gpu/50 on gpu (attached: 127.0.0.1) is inconclusive*the baseline has 1 boot*"])


def test_each_pass_has_a_salt_of_its_own(project: Project, pair: StubPair) -> None:
    """Two passes ask for as many prompts of the same lengths, and no prompt of one is a prompt of the other."""
    configure(project, toml(more=table(pair)))
    salts, lengths = [], []
    for _ in range(2):
        attach(project, "--record-baselines")
        (plan,) = run_folder(project).rglob("plan.json")
        salts.append(json.loads(plan.read_text())["salt"])
        rows = pd.read_parquet(plan.parent / "requests.parquet").sort_values(["user", "round"])
        lengths.append([*rows["intended_prompt_tokens"]])
    assert salts[0]
    assert salts[0] != salts[1]
    assert lengths[0] == lengths[1]


def test_other_traffic_is_named_with_its_share(project: Project, pair: StubPair) -> None:
    """A second client beside the load makes the run incomparable, with its share of the prompt tokens."""
    configure(project, toml(more=table(pair), duration_s=2))
    other = during(project, lambda: ask(pair.servers["vllm-0"], words=400, times=5))
    result = attach(project, "--record-baselines", "--kv-strict")
    other.join()
    result.assert_outcomes(failed=3)
    result.stdout.re_match_lines(
        [
            r".*\d+% of the prompt tokens in the window were not this run's "
            r"\(2025 of \d+: vllm-0 2025 of \d+, vllm-1 0 of"
        ]
    )
    assert not (project.path / "baselines").exists() or not list((project.path / "baselines").rglob("*.json"))
    share = facts(project)["proof"]["other_traffic"]["share_of_prompt_tokens"]  # type: ignore[index]
    assert 0 < share < 1


def test_other_traffic_may_be_allowed(project: Project, pair: StubPair) -> None:
    """Below the share that kvcache.toml allows, others do not keep a run from being compared."""
    configure(project, toml(more=table(pair, more="other_traffic = 0.9"), duration_s=2))
    other = during(project, lambda: ask(pair.servers["vllm-0"], words=100))
    result = attach(project, "--record-baselines")
    other.join()
    result.assert_outcomes(passed=3)
    assert facts(project)["proof"]["other_traffic"]["share_of_prompt_tokens"] > 0  # type: ignore[index]


def test_a_restart_in_the_middle_is_invalid(project: Project, tmp_path: Path) -> None:
    """A server that is started anew under the load makes the run invalid, with that cause."""
    with stub_pair(tmp_path / "pair") as own:
        configure(project, toml(more=table(own), duration_s=2))
        restart = during(project, lambda: own.restart("vllm-1"))
        result = attach(project, "--record-baselines")
        restart.join()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        ["*is invalid: no verdict may rest on this run", "*vllm-1: its process is not the one of before*"]
    )


def test_the_key_comes_from_the_environment(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API key is sent by the load and the probes, from a variable that nothing of the run keeps."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with stub_pair(tmp_path / "pair", "--stub-key", KEY) as own:
        configure(project, toml(more=table(own, more='api_key_env = "VLLM_API_KEY"')))
        result = attach(project, "--record-baselines")
    result.assert_outcomes(passed=3)
    assert KEY not in result.stdout.str() + result.stderr.str()
    kept = [path for path in project.path.rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


def test_answers_without_a_name_are_balanced_as_a_whole(project: Project, tmp_path: Path) -> None:
    """Where servers do not name themselves, the run is valid, and it is said that it is not known who answered."""
    with stub_pair(tmp_path / "pair", "--response-role", "assistant") as own:
        configure(project, toml(more=table(own)))
        result = attach(project, "--record-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*which server answered which request: answers do not name their server*"])


def test_only_the_router_is_known(project: Project, pair: StubPair) -> None:
    """Without servers the load is measured, and everything that cannot be known is said."""
    configure(project, toml(more=f'\n[attach.gpu]\nbase_url = "{pair.router}"\n'))
    result = attach(project, "--record-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*not looked at: cold start, cross-instance hits and integrity: the deployment's servers are not named*",
            "*not proved: *whether others used the deployment: no counter of prompt tokens is read",
        ]
    )


def test_addresses_on_the_command_line(project: Project, pair: StubPair) -> None:
    """Without a table, options say where the deployment of the one named tier is."""
    configure(project, toml())
    servers = [f"--kv-server-url={url}" for url in pair.servers.values()]
    result = attach(project, "--record-baselines", f"--kv-base-url={pair.router}", *servers)
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("args", "more", "expected"),
    [
        (["--tier", "gpu"], "", "no deployment was named that serves it"),
        (["--kv-base-url", "http://x/v1"], "", "which tier the deployment serves is not said"),
        (["--tier", "gpu", "--kv-base-url", "http://x"], "", "must end in /v1"),
        (["--tier", "gpu", "--kv-base-url", "http://u:p@x/v1"], "", "has a user or password in it"),
        (["--tier", "gpu"], '[attach.gpu]\nbase_url="http://x/v1"\napi_key_env="NOT_SET"', "NOT_SET: is not set"),
        (
            ["--tier", "gpu", "--kv-against", "git:HEAD"],
            '[attach.gpu]\nbase_url="http://x/v1"',
            "a deployment that stands is not booted",
        ),
    ],
)
def test_a_wrong_configuration_sends_nothing(project: Project, args: list[str], more: str, expected: str) -> None:
    """What is wrong with the description of a deployment ends the session before anything is sent."""
    configure(project, toml(more="\n" + more))
    result = run(project, "--kv-launcher", "attach", "-m", "perf", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert expected in result.stdout.str() + result.stderr.str()
    assert not (project.path / ".kvcache").exists()


def test_addresses_without_attach_are_refused(project: Project) -> None:
    """Options that say where a deployment is do not silently boot a pair."""
    configure(project, toml())
    result = run(project, "--tier", "gpu", "--kv-base-url", "http://x/v1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "add --kv-launcher attach" in result.stdout.str() + result.stderr.str()


def test_a_deployment_that_serves_another_model_is_not_measured(project: Project, pair: StubPair) -> None:
    """The preflight names the model that is served in place of the profile's."""
    configure(project, toml(more=table(pair)).replace('model = "stub"', 'model = "other"'))
    result = attach(project, "--record-baselines")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*does not serve other; it serves stub*"])
    assert not list((project.path / ".kvcache").rglob("load.log"))


def test_a_tier_that_no_deployment_serves_is_skipped(project: Project, pair: StubPair) -> None:
    """Of all tiers only those are measured that something stands for."""
    configure(project, toml(more=table(pair)))
    result = run(project, "--kv-launcher", "attach", "-m", "perf", "-rs", "--record-baselines")
    result.assert_outcomes(passed=3, skipped=9)
    result.stdout.fnmatch_lines(["SKIPPED*no deployment was named that serves it*"])
