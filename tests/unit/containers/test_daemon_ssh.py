"""A daemon behind SSH is talked to through `ssh HOST docker system dial-stdio`, and nothing of that stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs import containers

#: A stand-in for ssh: it serves what a daemon would on its standard input and output, once it has noted its arguments.
_SSH = f"""#!{sys.executable}
import json, os, sys
from http.server import BaseHTTPRequestHandler

with open({{notes!r}}, "a") as notes:
    notes.write(json.dumps([os.getpid(), *sys.argv]) + "\\n")

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self):
        self.rfile, self.wfile, self.client_address = sys.stdin.buffer, sys.stdout.buffer, ("ssh", 0)
        self.handle()

    def log_message(self, *_):
        pass

    def do_GET(self):
        answer = {{{{"ApiVersion": "1.43", "Name": "gpu-1", "Path": self.path, "Host": self.headers["Host"]}}}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

Handler()
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program in the place of ssh; return the file with the arguments of each start."""
    notes = tmp_path / "notes"
    notes.touch()

    def make(text: str) -> Path:
        program = tmp_path / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(notes=str(notes)))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return notes

    return make


def started(notes: Path) -> list[list[str]]:
    """Return process number and arguments of each start."""
    return [json.loads(line) for line in notes.read_text().splitlines()]


def test_a_daemon_behind_ssh(ssh: Callable[[str], Path]) -> None:
    """The SDK's own client works over it, in the version that the daemon speaks; afterwards no ssh is left."""
    notes = ssh(_SSH)
    with containers.daemon("ssh://me@gpu-1:2222") as client:
        assert client.info()["Name"] == "gpu-1"
        assert client.info()["Path"] == "/v1.43/info"
        living = [psutil.Process(int(pid)) for pid, *_ in started(notes)]
        assert living
    assert not any(process.is_running() for process in living)
    (_, _, *argv), *_ = started(notes)
    assert argv[-5:] == ["--", "gpu-1", "docker", "system", "dial-stdio"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo "me@gpu-1: Permission denied (publickey)." >&2; exit 255', "me@gpu-1: Permission denied (publickey)."),
        ('echo "sh: 1: docker: not found" >&2; exit 127', "sh: 1: docker: not found"),
        ('echo "Welcome" >&2; echo "ssh: connect to host gpu-1 port 22: No route to host" >&2; exit 255', "No route"),
    ],
)
def test_what_ssh_says_is_the_reason(ssh: Callable[[str], Path], script: str, said: str) -> None:
    """A connection that fails is told in the words of ssh or of the other side's shell, with what must work."""
    ssh(f"#!/bin/sh\n{script}\n")
    with pytest.raises(ConfigError) as caught, containers.daemon("ssh://me@gpu-1"):
        pass
    assert caught.value.what.startswith("docker: ")
    assert said in caught.value.what
    assert caught.value.where == "ssh://me@gpu-1"
    assert "without a question" in caught.value.todo


def test_without_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without OpenSSH is told so."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="ssh://gpu-1: ssh is not installed"), containers.daemon("ssh://gpu-1"):
        pass


def test_ssh_ends_with_whoever_started_it(ssh: Callable[[str], Path]) -> None:
    """After kill -9 of the session its connections are closed, so that no ssh stays."""
    notes = ssh(_SSH)
    code = (
        "import time; from pytest_kvcache.runs import containers\n"
        "with containers.daemon('ssh://gpu-1') as client: client.info(); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        living = [psutil.Process(int(pid)) for pid, *_ in started(notes)]
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in living):
        assert time.monotonic() < deadline
        time.sleep(0.05)
