"""The client against a server that misbehaves: each failure is one row with its status."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import requests

from pytest_kvcache.config.profile import Workload
from pytest_kvcache.runs.ports import PortLeases
from pytest_kvcache.workload import multi_round
from pytest_kvcache.workload.multi_round import Outcome
from pytest_kvcache.workload.plan import LoadPlan

PROGRAMS = Path(__file__).parents[1] / "stubs" / "programs.py"
WORKLOAD = Workload(
    users=3,
    rounds=8,
    qps=30,
    shared_prompt_tokens=10,
    context_tokens=(20,),
    answer_tokens=4,
    duration_s=0.5,
    warmup_requests=0,
    request_timeout_s=1,
)


class Server:
    """A stub server on a port of its own.

    Args:
        port: Its port.
        args: For the stub.
    """

    def __init__(self, port: int, *args: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, str(PROGRAMS), "vllm", "--port", str(port), *args])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                requests.get(f"{self.url}/health", timeout=1)
                return
            except requests.RequestException:
                time.sleep(0.05)
        raise AssertionError("the stub did not start")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A free port."""
    leases = PortLeases(tmp_path / "ports")
    yield leases.take()
    leases.release()


def plan(tmp_path: Path, port: int, workload: Workload = WORKLOAD) -> LoadPlan:
    """Return a plan against a stub."""
    return LoadPlan(
        base_url=f"http://127.0.0.1:{port}/v1",
        model="stub",
        workload=workload,
        context_tokens=20,
        first_user=0,
        rows=tmp_path / "rows.parquet",
        summary=tmp_path / "load.json",
    )


def run(load_plan: LoadPlan) -> Outcome:
    """Carry out a plan in this process."""
    outcome = Outcome()
    wire = multi_round.connect(load_plan.base_url)
    multi_round.run(load_plan, outcome, wire)
    wire.close()
    return outcome


def test_a_good_answer_is_a_whole_row(tmp_path: Path, port: int) -> None:
    """A finished request has every time in order, every count, and the name of its server."""
    server = Server(port, "--response-role", "assistant@vllm-0")
    try:
        rows = run(plan(tmp_path, port)).rows
    finally:
        server.stop()
    assert {r.status for r in rows} == {"ok"}
    for r in rows:
        assert r.actual_start_s is not None
        assert r.first_token_s is not None
        assert r.last_token_s is not None
        assert r.intended_start_s <= r.actual_start_s < r.first_token_s <= r.last_token_s
        assert (r.generated_tokens, len(r.token_times_s), r.server) == (4, 4, "vllm-0")
        assert r.server_queue_s == pytest.approx(0.0015)
        assert r.server_ttft_s == pytest.approx(0.005)


def test_each_round_carries_the_whole_history(tmp_path: Path, port: int) -> None:
    """A user's prompts grow by question and answer from round to round."""
    server = Server(port)
    try:
        rows = run(plan(tmp_path, port, WORKLOAD.model_copy(update={"duration_s": 0.8}))).rows
    finally:
        server.stop()
    for user in {r.user for r in rows}:
        lengths = [r.prompt_tokens or 0 for r in rows if r.user == user]
        assert all(b - a >= WORKLOAD.answer_tokens for a, b in itertools.pairwise(lengths))


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("500", "http-error"),
        ("break", "broken-stream"),
        ("stall", "timed-out"),
        ("malformed", "malformed"),
        ("empty", "empty-answer"),
        ("no-usage", "malformed"),
        ("no-done", "broken-stream"),
    ],
)
def test_each_fault_is_a_row_with_its_status(tmp_path: Path, port: int, fault: str, status: str) -> None:
    """Whatever the server does, the run goes on and each request says what became of it."""
    server = Server(port, "--stub-fail", fault)
    try:
        rows = run(plan(tmp_path, port)).rows
    finally:
        server.stop()
    sent = [r for r in rows if r.actual_start_s is not None]
    assert {r.status for r in sent} == {status}
    assert all(r.error for r in sent)


def test_a_refused_connection_is_a_row(tmp_path: Path, port: int) -> None:
    """Where nothing listens, every request is a row that says so."""
    rows = run(plan(tmp_path, port)).rows
    assert {r.status for r in rows} == {"no-connection"}


def test_a_late_user_delays_nobody_else(tmp_path: Path, port: int) -> None:
    """With answers slower than the gap, other users still start when they are due."""
    server = Server(port, "--stub-ttft", "0.4")
    try:
        rows = run(plan(tmp_path, port)).rows
    finally:
        server.stop()
    firsts = {r.user: r for r in reversed(rows)}
    for r in firsts.values():
        assert r.actual_start_s is not None
        assert r.actual_start_s - r.intended_start_s < 0.3
    assert any(r.status == "not-sent" for r in rows)


def test_a_load_process_that_is_ended_keeps_its_rows(tmp_path: Path, port: int) -> None:
    """SIGTERM ends the load early; finished rows are kept and those under way are marked."""
    server = Server(port, "--stub-itl", "0.05")
    load_plan = plan(tmp_path, port, WORKLOAD.model_copy(update={"duration_s": 60, "request_timeout_s": 30}))
    (tmp_path / "plan.json").write_text(load_plan.model_dump_json())
    argv = [sys.executable, "-m", "pytest_kvcache.workload.worker", str(tmp_path / "plan.json")]
    worker = subprocess.Popen(argv)
    try:
        time.sleep(4)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(5) == 0
    finally:
        worker.kill()
        server.stop()
    rows = pd.read_parquet(load_plan.rows)
    counts = rows["status"].value_counts()
    assert counts["ok"] > 10
    assert counts["cancelled"] >= 1
    assert counts["not-sent"] > 100
