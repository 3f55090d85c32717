"""A load that is spread over load nodes: the real command, real agents and a stub server; each way to go wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tests.projects import Project, configure, run, run_folder
from tests.sessions.test_load_command import command
from tests.stubs.engine import toml
from tests.stubs.load_node import KEY, OTHER_VERSION, WRONG_CLOCK, Node, load_node
from tests.stubs.server import stub_server

pytestmark = pytest.mark.long


def send(folder: Path, url: str, nodes: list[str], *, env: dict[str, str] | None = None, **more: str) -> Sent:
    """Have the nodes send, and return what came of it."""
    flags = list(itertools.chain(*(("--node", each) for each in nodes)))
    done = subprocess.run(
        # Machines of tests are busy: what is looked at is whether it is true what is said of clocks.
        [*command(folder, url, **{"clock_error_budget": "0.02"} | more), *flags],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "KVCACHE_LOAD_KEY": KEY, **(env or {})},
    )
    rows, facts = folder / "out" / "summary.parquet", folder / "out" / "summary.json"
    return Sent(
        done.returncode,
        done.stdout + done.stderr,
        pd.read_parquet(rows) if rows.exists() else pd.DataFrame(),
        json.loads(facts.read_text()) if facts.exists() else {},
    )


class Sent:
    """What a load left.

    Args:
        code: Exit code.
        output: What it printed.
        rows: Its rows.
        facts: Its facts.
    """

    def __init__(self, code: int, output: str, rows: pd.DataFrame, facts: dict[str, Any]) -> None:
        self.code, self.output, self.rows, self.facts = code, output, rows, facts


def gone(node: Node) -> None:
    """Wait until nothing that the agent started is left."""
    deadline = time.monotonic() + 15
    while psutil.Process(node.process.pid).children(recursive=True):
        assert time.monotonic() < deadline, psutil.Process(node.process.pid).children(recursive=True)
        time.sleep(0.05)


def test_two_nodes_send_the_same_as_one_machine(tmp_path: Path) -> None:
    """Rows of both nodes make the same schedule, on one clock, each marked with its node; clocks agree to 0.1 ms."""
    with stub_server(tmp_path) as url, load_node() as a, load_node() as b:
        here = send(tmp_path / "here", url, [])
        there = send(tmp_path / "there", url, [a.address, b.address])
        gone(a)
        gone(b)
    assert there.code == 0, there.output
    columns = ["user", "round", "intended_start_s", "intended_prompt_tokens", "prompt_tokens", "status"]
    pd.testing.assert_frame_equal(here.rows[columns], there.rows[columns])
    assert set(there.rows["node"]) == {a.address, b.address}
    assert set(here.rows["node"]) == {""}
    assert there.rows.groupby("user")["node"].nunique().eq(1).all()
    for first, second in itertools.pairwise(["due_s", "actual_start_s", "first_token_s", "last_token_s"]):
        assert (there.rows[first] <= there.rows[second] + 1e-6).all()
    assert [each["address"] for each in there.facts["nodes"]] == [a.address, b.address]
    for each in there.facts["nodes"]:
        clock = each["clock"]
        # One machine has one CLOCK_MONOTONIC, whatever was measured: what is said must be true.
        assert abs(clock["offset_before_s"]) <= clock["offset_before_uncertainty_s"] + 1e-9
        assert abs(clock["offset_change_s"]) <= 2 * clock["error_s"]
        assert each["rows"] == (there.rows["node"] == each["address"]).sum()
    assert here.facts["nodes"] == []
    assert KEY not in there.output + json.dumps(there.facts)


def test_a_node_serves_one_load_after_another(tmp_path: Path) -> None:
    """An agent serves the next load as the first; with --once it ends after it; a second one at a time is refused."""
    with stub_server(tmp_path) as url, load_node() as node, load_node("--once") as once:
        slow = threading.Thread(target=send, args=(tmp_path / "slow", url, [node.address]), kwargs={"time": "6"})
        slow.start()
        deadline = time.monotonic() + 30
        while not any("sends" in line for line in node.said):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = send(tmp_path / "busy", url, [node.address])
        slow.join()
        again = send(tmp_path / "again", url, [node.address])
        assert send(tmp_path / "once", url, [once.address]).code == 0
        once.process.wait(30)
    assert refused.code == 1
    assert "busy with another load" in refused.output
    assert again.code == 0, again.output


def test_answers_that_return_and_closed_loops(tmp_path: Path) -> None:
    """Mode compat, in which prompts hold answers, is spread as the other is; so is a load without a tokenizer."""
    with stub_server(tmp_path) as url, load_node() as a, load_node() as b:
        sent = send(tmp_path, url, [a.address, b.address], mode="compat", time="1.2")
    assert sent.code == 0, sent.output
    assert sent.rows["node"].nunique() == 2
    for _, own in sent.rows.groupby("user"):
        assert all(y - x >= 4 for x, y in itertools.pairwise(own["prompt_tokens"]))


def killed(node: Node) -> None:
    """Kill the agent, and so all that it started."""
    node.process.kill()


def stopped(node: Node) -> None:
    """Stop the agent's processes, as when its machine hangs; they are let go on at the end."""
    for each in psutil.Process(node.process.pid).children(recursive=True):
        each.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("fault", [killed, stopped])
def test_a_node_that_dies_keeps_the_others_rows(tmp_path: Path, fault: Callable[[Node], None]) -> None:
    """The others send on; what the lost node had handed over is kept, and the run is invalid with its name."""
    with stub_server(tmp_path) as url, load_node() as good, load_node() as bad:
        held: list[psutil.Process] = []

        def strike() -> None:
            deadline = time.monotonic() + 60
            while not any("sends" in line for line in bad.said) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(3.0)
            held.extend(psutil.Process(bad.process.pid).children(recursive=True))
            fault(bad)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            sent = send(tmp_path, url, [good.address, bad.address], time="8", qps="10", num_users="6", num_rounds="14")
        finally:
            thread.join()
            for each in held:
                if each.is_running():
                    each.kill()
    assert sent.code == 1, sent.output
    assert f"INVALID: load node {bad.address} was lost" in sent.output
    of_good, of_bad = (sent.rows[sent.rows["node"] == node.address] for node in (good, bad))
    assert set(of_good["status"]) == {"ok"}
    assert of_good["intended_start_s"].max() > 7
    assert 0 < len(of_bad) < len(of_good)
    assert f"{len(of_bad)} rows that it had handed over are kept" in sent.output
    assert of_bad["intended_start_s"].max() < 6


def test_what_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """Another key, another version, nobody there, no agent, a node twice, a password: named, and nothing is sent."""
    with stub_server(tmp_path) as url, load_node() as node, load_node(program=OTHER_VERSION) as other:
        cases = {
            "different keys": send(tmp_path / "1", url, [node.address], env={"KVCACHE_LOAD_KEY": "x" * 40}),
            "the node has pytest-kvcache 0.0.7": send(tmp_path / "2", url, [node.address, other.address]),
            "cannot be reached": send(tmp_path / "3", url, ["127.0.0.1:1"]),
            "no load node answers there": send(tmp_path / "4", url, [url.removeprefix("http://")]),
            "is there twice": send(tmp_path / "5", url, [node.address, node.address]),
            "is no HOST:PORT": send(tmp_path / "6", url, ["somewhere"]),
            "KVCACHE_LOAD_KEY is not set": send(tmp_path / "7", url, [node.address], env={"KVCACHE_LOAD_KEY": ""}),
            "handed to no load node": send(
                tmp_path / "8", url, [node.address], base_url=url.replace("//", "//me:secret@") + "/v1"
            ),
        }
        assert not any("sends" in line for line in node.said)
    for words, found in cases.items():
        assert (found.code, words in found.output, "Traceback" in found.output) == (1, True, False), found.output
        assert found.rows.empty
        assert not {"x" * 40, "secret", KEY} & set(found.output.split())


def test_an_api_key_stays_on_each_node(tmp_path: Path) -> None:
    """A node reads the key of the servers from its own environment, and says so where it has none."""
    with stub_server(tmp_path) as url, load_node() as bare, load_node(env={"STUB_KEY": "of-the-servers"}) as having:
        env = {"STUB_KEY": "of-the-servers"}
        refused = send(tmp_path / "1", url, [bare.address], env=env, api_key_env="STUB_KEY")
        sent = send(tmp_path / "2", url, [having.address], env=env, api_key_env="STUB_KEY")
    assert refused.code == 1
    assert "STUB_KEY" in refused.output
    assert "is not set" in refused.output
    assert sent.code == 0, sent.output


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("300_000_000 * (at > 4e9)", "may be wrong by"),  # set by 300 ms under way
        ("at * 1e-3", "ppm too fast"),  # 1000 ppm
        ("-at * 1e-3", "ppm too slow"),
    ],
)
def test_a_clock_that_cannot_be_trusted(tmp_path: Path, error: str, words: str) -> None:
    """A node whose clock is set or drifts beyond the budget makes the run invalid, and its rows are kept."""
    with stub_server(tmp_path) as url, load_node() as good, load_node(program=WRONG_CLOCK.format(error=error)) as bad:
        sent = send(tmp_path, url, [good.address, bad.address], time="12", qps="4", num_users="4")
    assert sent.code == 1, sent.output
    assert words in sent.output
    assert bad.address in next(line for line in sent.output.splitlines() if words in line)
    assert len(sent.rows) == 48


def test_ctrl_c_has_the_nodes_hand_over(tmp_path: Path) -> None:
    """An interruption ends the load on every node, and keeps what was measured."""
    with stub_server(tmp_path) as url, load_node() as a, load_node() as b:
        process = subprocess.Popen(
            [*command(tmp_path, url, time="60", num_users="6"), "--node", a.address, "--node", b.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "KVCACHE_LOAD_KEY": KEY},
        )
        deadline = time.monotonic() + 60
        while not any("sends" in line for line in b.said):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        gone(a)
        gone(b)
    assert process.returncode == 130, output
    rows = pd.read_parquet(tmp_path / "out" / "summary.parquet")
    assert rows[rows["status"] == "ok"].groupby("node").size().min() > 10


@pytest.fixture
def other_time() -> tuple[str, ...]:
    """The words that give a program a CLOCK_MONOTONIC of its own, 1000 s ahead (a time namespace)."""
    words = ("unshare", "--time", "--fork", "--kill-child", "--monotonic", "1000")
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("time namespaces take CAP_SYS_ADMIN and Linux 5.6")
    return words


def test_a_clock_that_is_really_another(tmp_path: Path, other_time: tuple[str, ...]) -> None:
    """A node whose clock is 1000 s ahead begins with the others, and its rows are on one clock with theirs."""
    with stub_server(tmp_path) as url, load_node() as a, load_node(before=other_time) as b:
        sent = send(tmp_path, url, [a.address, b.address])
    assert sent.code == 0, sent.output
    clock = next(each for each in sent.facts["nodes"] if each["address"] == b.address)["clock"]
    assert clock["offset_before_s"] == pytest.approx(1000, abs=clock["offset_before_uncertainty_s"] + 1e-6)
    late = sent.rows["actual_start_s"] - sent.rows["due_s"]
    assert late.between(-1e-3, 0.5).all()
    assert (sent.rows["due_s"] - sent.rows["intended_start_s"]).abs().max() < 0.5


def test_a_session_sends_from_nodes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session's loads go over its nodes, the number of them is a comparability key, and the key is in no file."""
    monkeypatch.setenv("KVCACHE_LOAD_KEY", KEY)
    configure(project, toml(more="clock_error_budget_s = 0.02\n"))
    with load_node() as a, load_node() as b:
        flags = ("--kv-load-node", a.address, "--kv-load-node", b.address)
        run(project, "-m", "perf", "--tier", "gpu", "--record-baselines", *flags).assert_outcomes(passed=3)
        gone(a)
        gone(b)
    folder = run_folder(project)
    (facts,) = [json.loads(path.read_text()) for path in folder.rglob("run.json")]
    assert [each["address"] for each in facts["load"]["nodes"]] == [a.address, b.address]
    assert facts["comparability"]["load.nodes"] == "2"
    (rows,) = folder.rglob("requests.parquet")
    assert set(pd.read_parquet(rows)["node"]) == {a.address, b.address}
    left = [path for path in project.path.rglob("*") if path.is_file()]
    assert not [path for path in left if KEY.encode() in path.read_bytes()]
    alone = run(project, "-m", "perf", "--tier", "gpu")
    assert alone.parseoutcomes() == {"incomparable": 3}  # no failure where not asked for
    alone.stdout.fnmatch_lines(["*incomparable*"])
    alone.stdout.fnmatch_lines(["*load.nodes: 2 -> *"])


def test_a_node_that_is_not_there_stops_a_session_before_a_boot(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose load node cannot be reached, or that has no key, fails with its name and boots nothing."""
    configure(project, toml())
    monkeypatch.delenv("KVCACHE_LOAD_KEY", raising=False)
    for words in ("KVCACHE_LOAD_KEY is not set", "load node 127.0.0.1:1: cannot be reached"):
        found = run(project, "-m", "perf", "--tier", "gpu", "--record-baselines", "--kv-load-node", "127.0.0.1:1")
        found.assert_outcomes(errors=3)
        found.stdout.fnmatch_lines([f"*{words}*"])
        assert "servers ready" not in found.stdout.str()
        monkeypatch.setenv("KVCACHE_LOAD_KEY", KEY)
