"""`pytest-kvcache load` against a stub server: what it sends and leaves, and each way in which the other side fails."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pytest_kvcache import cli
from pytest_kvcache.workload import reference_csv
from tests.stubs.server import free_port, stub_server

FLAGS = {
    "--model": "stub",
    "--num-users": "3",
    "--num-rounds": "8",
    "--qps": "30",
    "--shared-system-prompt": "20",
    "--user-history-prompt": "40",
    "--answer-len": "4",
    "--time": "0.8",
    "--request-timeout": "1",
    "--token-timeout": "5",
}


def command(folder: Path, url: str, **more: str) -> list[str]:
    """Return the command line."""
    flags = {**FLAGS, "--base-url": f"{url}/v1", "--output": str(folder / "out" / "summary.csv")}
    flags |= {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    return [sys.executable, "-m", "pytest_kvcache.cli", "load", *itertools.chain(*flags.items())]


def load(folder: Path, url: str, **more: str) -> tuple[int, str, pd.DataFrame]:
    """Send a load; return exit code, output and rows."""
    done = subprocess.run(command(folder, url, **more), capture_output=True, text=True, timeout=60, check=False)
    rows = folder / "out" / "summary.parquet"
    return done.returncode, done.stdout + done.stderr, pd.read_parquet(rows) if rows.exists() else pd.DataFrame()


def test_a_good_run(tmp_path: Path) -> None:
    """Each row has its times in order, exact lengths, its server, and the residual of the client's TTFT."""
    with stub_server(tmp_path, "--response-role", "assistant@vllm-0") as url:
        code, output, rows = load(tmp_path, url)
    assert code == 0, output
    assert set(rows["status"]) == {"ok"}
    assert len(rows) == 24
    assert rows["intended_start_s"].tolist() == pytest.approx([i / 30 for i in range(24)])
    for a, b in itertools.pairwise(["intended_start_s", "due_s", "actual_start_s", "first_token_s", "last_token_s"]):
        assert (rows[a] <= rows[b] + 1e-6).all()
    assert (rows["prompt_tokens"] == rows["intended_prompt_tokens"]).all()
    assert (rows["prompt_tokens"] == 20 + 40 + 32 + (rows["round"] - 1) * 36).all()
    assert (rows["generated_tokens"] == 4).all()
    assert rows["token_times_s"].map(len).eq(4).all()
    assert set(rows["server"]) == {"vllm-0"}
    ttft = rows["first_token_s"] - rows["actual_start_s"]
    residual = ttft - rows["server_queue_s"] - rows["server_ttft_s"]
    assert rows["residual_s"].tolist() == pytest.approx(residual.tolist())
    assert "client TTFT less the server's own" in output


def test_compat_leaves_the_originals_csv(tmp_path: Path) -> None:
    """In mode compat the CSV has the original's columns, answers return in the history, and the summary is printed."""
    with stub_server(tmp_path) as url:
        code, output, rows = load(tmp_path, url, mode="compat", time="1.2")
    assert code == 0, output
    table = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert tuple(table.columns) == reference_csv.COLUMNS
    assert len(table) == len(rows)
    for _, own in rows.groupby("user"):
        # The next prompt has the question and the answer of 4 words more.
        assert all(b - a >= 4 for a, b in itertools.pairwise(own["prompt_tokens"]))
    assert "Processing speed:" in output
    assert "Average TTFT:" in output


@pytest.mark.parametrize("mode", ["exact", "compat"])
def test_answers_of_one_token(tmp_path: Path, mode: str) -> None:
    """A load that asks for one token an answer has TTFT and processing speed, and "-" for what needs a second token."""
    with stub_server(tmp_path) as url:
        code, output, rows = load(tmp_path, url, answer_len="1", mode=mode)
    assert code == 0, output
    sent = rows[rows["actual_start_s"].notna()]
    assert set(sent["status"]) == {"ok"}
    assert (sent["first_token_s"] == sent["last_token_s"]).all()
    assert sent["token_times_s"].map(len).eq(1).all()
    assert "ITL mean -, p99 - ms" in output
    assert "Average generation throughput (per request): - tokens/req/s" in output
    assert "TTFT mean / p50 / p90 / p99: " in output
    assert "suspect: " not in output
    assert not {"nan", "inf", "Traceback"} & set(output.replace(":", " ").split())


def test_a_proxy_that_collects_answers(tmp_path: Path) -> None:
    """Answers that come all at once after the time that decoding them took make the run suspect, and name the cause."""
    with stub_server(tmp_path, "--stub-buffers") as url:
        code, output, rows = load(tmp_path, url, answer_len="20")
    assert code == 0, output
    assert "suspect: tokens arrive in bursts: " in output
    assert "proxy_buffering off" in output
    with stub_server(tmp_path) as url:
        code, output, rows = load(tmp_path, url, answer_len="20")
    assert code == 0, output
    assert rows["token_times_s"].map(len).max() == 20
    assert "arrive in bursts" not in output


def test_several_load_processes(tmp_path: Path) -> None:
    """With two processes the same requests are sent at the same times, each once."""
    with stub_server(tmp_path) as url:
        code, output, rows = load(tmp_path, url, workers="2")
    assert code == 0, output
    assert rows["intended_start_s"].tolist() == pytest.approx([i / 30 for i in range(24)])
    assert not rows.duplicated(["user", "round"]).any()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["workers"] == 2


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("500", "http-error", "HTTP 500: stub says no"),
        ("404", "http-error", "HTTP 404: stub says no"),
        ("break", "broken-stream", "connection closed"),
        ("slow", "timed-out", "timed out"),
        ("malformed", "malformed", "{not json"),
        ("empty", "empty-answer", "no token"),
        ("no-usage", "malformed", "no usage"),
        ("no-done", "broken-stream", "before [DONE]"),
    ],
)
def test_each_fault_is_a_row_with_its_status(tmp_path: Path, fault: str, status: str, error: str) -> None:
    """Whatever the server does, the run goes on to its end, each request says what became of it, and none is valid."""
    with stub_server(tmp_path, "--stub-fail", fault) as url:
        code, output, rows = load(tmp_path, url)
    assert code == 1
    sent = rows[rows["actual_start_s"].notna()]
    assert set(sent["status"]) == {status}
    assert sent["error"].str.contains(error, regex=False).all()
    assert f"INVALID: {len(sent)} of {len(sent)} requests failed ({len(sent)} {status})" in output


def test_a_stream_that_stands_still(tmp_path: Path) -> None:
    """Where no token comes within the token deadline the request is failed, long before its own deadline."""
    with stub_server(tmp_path, "--stub-fail", "stall") as url:
        code, output, rows = load(tmp_path, url, token_timeout="0.3", request_timeout="60")
    assert code == 1
    assert set(rows[rows["actual_start_s"].notna()]["status"]) == {"stalled"}
    assert "nothing arrived for 0.3 s" in output


def test_nobody_listens(tmp_path: Path) -> None:
    """Where nothing listens, in mode exact the run does not start, in compat every request is a row that says so."""
    with free_port(tmp_path) as port:
        url = f"http://127.0.0.1:{port}"
        code, output, rows = load(tmp_path, url)
        assert (code, rows.empty) == (1, True)
        assert "exact prompt lengths need vLLM's tokenizer API" in output
        assert "--mode compat" in output
        code, output, rows = load(tmp_path, url, mode="compat")
    assert code == 1
    assert set(rows["status"]) == {"no-connection"}
    assert "INVALID: warm-up request failed: no-connection" in output


def test_a_server_that_dies(tmp_path: Path) -> None:
    """What was answered before is kept, what came after is marked, and the run is invalid."""
    with stub_server(tmp_path, "--stub-fail", "die") as url:
        code, _, rows = load(tmp_path, url, mode="compat", shared_system_prompt="1")
    assert code == 1
    assert {"broken-stream", "no-connection"} >= set(rows[rows["status"] != "ok"]["status"])
    assert (rows["status"] == "no-connection").any()


def test_a_late_user_delays_nobody_else(tmp_path: Path) -> None:
    """With answers slower than a user's gap, others are sent on time; the late ones' lateness is theirs alone."""
    with stub_server(tmp_path, "--stub-ttft", "0.4") as url:
        code, output, rows = load(tmp_path, url, qps="10", time="2")
    assert code == 0, output  # the server is slow, the client is not to blame
    first = rows.drop_duplicates("user")
    assert (first["actual_start_s"] - first["intended_start_s"]).max() < 0.2
    later = rows[~rows.index.isin(first.index) & rows["actual_start_s"].notna()]
    assert (later["due_s"] - later["intended_start_s"]).max() > 0.05
    assert (rows["status"] == "not-sent").any()
    assert rows[rows["status"] == "not-sent"]["error"].str.contains("after the end of the run").all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C ends the load; finished rows are kept, those under way and those to come are marked, exit code 130."""
    with stub_server(tmp_path, "--stub-itl", "0.05") as url:
        process = subprocess.Popen(
            command(tmp_path, url, time="60", log_interval="1"),
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        assert process.stdout is not None
        for line in process.stdout:
            if " 60 s: " in line:  # live progress
                break
        time.sleep(1)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 130
    rows = pd.read_parquet(tmp_path / "out" / "summary.parquet")
    counts = rows["status"].value_counts()
    assert counts["ok"] > 10
    assert counts["cancelled"] >= 1
    assert counts["not-sent"] > 100
    assert "INVALID: the run was ended before its time" in output
    assert len(pd.read_csv(tmp_path / "out" / "summary.csv")) == counts["ok"]


def begun(folder: Path, url: str, until: str, **more: str) -> subprocess.Popen[str]:
    """Start a load that takes Ctrl-C as at a terminal, and return it once it has printed `until`."""
    process = subprocess.Popen(
        command(folder, url, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            return process
    raise AssertionError(f"{until!r} was never printed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_the_tokenizer_hangs(tmp_path: Path, number: signal.Signals) -> None:
    """A server that takes a connection and says nothing keeps nobody from ending the load."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = begun(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "preparing prompts")
        asked, _ = silent.accept()
        with asked:
            asked.recv(10)
            process.send_signal(number)
            output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "interrupted before the clock started: nothing was measured" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("number", "after_s"), [(signal.SIGINT, 0.7), (signal.SIGTERM, 3.0), (signal.SIGHUP, 0.7)])
def test_interrupted_before_the_clock_starts(tmp_path: Path, number: signal.Signals, after_s: float) -> None:
    """During the warm-up and while caches are filled a signal ends the load, and none is sent after it."""
    with stub_server(tmp_path, "--stub-ttft", "2") as url:
        process = begun(tmp_path, url, "preparing prompts", request_timeout="30")
        time.sleep(after_s)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "the clock starts" not in output
    assert "Traceback" not in output


def test_interrupted_at_the_end(tmp_path: Path) -> None:
    """Signals that come when the last answers do, or while results are written, take no row."""
    with stub_server(tmp_path) as url:
        process = begun(tmp_path, url, "the clock starts")
        time.sleep(0.9)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output
    assert len(pd.read_parquet(tmp_path / "out" / "summary.parquet")) == 24


def test_a_terminal_that_is_gone_takes_no_rows(tmp_path: Path) -> None:
    """Where nobody reads the output any more, the load goes on to its end and keeps its rows."""
    with stub_server(tmp_path) as url:
        process = begun(tmp_path, url, "the clock starts", time="3", log_interval="1")
        assert process.stdout is not None
        process.stdout.close()
        process.wait(60)
    assert len(pd.read_parquet(tmp_path / "out" / "summary.parquet")) == 90


def test_a_load_process_that_is_killed(tmp_path: Path) -> None:
    """When a load process dies, its rows are missing, which makes the run invalid, and nothing is left behind."""
    with stub_server(tmp_path) as url:
        process = subprocess.Popen(
            command(tmp_path, url, time="4", workers="2", log_interval="1"), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if " 4 s: " in line:
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 4  # each with its sender
        subprocess.run(["kill", "-9", children[0]], check=True)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 1
    assert "INVALID: load process 1 of 2 was lost (" in output
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API key comes from the environment; neither output nor files nor command line have it."""
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with stub_server(tmp_path, "--stub-key", "sk-very-secret") as url:
        code, output, _ = load(tmp_path, url, api_key_env="MY_KEY")
        refused, text, _ = load(tmp_path, url, output=str(tmp_path / "other.csv"), mode="compat")
    assert code == 0, output
    assert refused == 1
    assert "HTTP 401" in text
    assert "sk-very-secret" not in output
    assert not any(b"sk-very-secret" in path.read_bytes() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_rounds": "1"}, "command line.rounds: Input should be greater than or equal to 2"),
        ({"trace": "t.jsonl", "answer_len": "5"}, "--num-users: says nothing to --trace, which has its own"),
        ({"speed": "2"}, "--speed: says nothing to multi-round QA without a file"),
        ({"sharegpt": "s.json", "seed": "1"}, "--shared-system-prompt: says nothing to --sharegpt"),
        ({"sharegpt": "s.json", "trace": "t.jsonl"}, "--trace, --sharegpt: a load is of one file"),
        ({"qps": "1e999"}, "qps"),
        ({"output": "rows.parquet"}, "--output: rows.parquet would be overwritten"),
        ({"output": "rows.json"}, "--output: rows.json would be overwritten"),
        ({"output": "/"}, "--output: / is a folder"),
        ({"output": "/proc/nowhere/rows.csv"}, "/proc/nowhere"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "--api-key-env NOT_SET_ANYWHERE: is not set"),
        ({"base_url": "127.0.0.1:9/v1"}, "--base-url: must begin with http://"),
        ({"base_url": "http://no.such.host.invalid/v1", "tokenizer_url": "http://127.0.0.1:9"}, "127.0.0.1:9"),
        (
            {"base_url": "http://no.such.host.invalid/v1", "mode": "compat"},
            "http://no.such.host.invalid/v1: cannot be reached",
        ),
        ({"metrics_url": "http://me:secret@h/metrics"}, "--metrics-url: has a user or password"),
    ],
    ids=[
        "rounds",
        "trace",
        "speed",
        "sharegpt",
        "two",
        "infinite",
        "parquet",
        "json",
        "folder",
        "unwritable",
        "key",
        "scheme",
        "tokenizer",
        "name",
        "metrics",
    ],
)
def test_a_wrong_flag_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str], message: str
) -> None:
    """A wrong value or file ends it before anything is sent, without a traceback."""
    argv = command(tmp_path, "http://127.0.0.1:9", **more)
    code = cli.main(argv[argv.index("load") :])
    output = "".join(capsys.readouterr())
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert "secret" not in output
    assert len(output.splitlines()) <= 3
