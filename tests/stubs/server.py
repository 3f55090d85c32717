"""A stub vLLM server in a process of its own, for tests of the client."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from pytest_kvcache.runs.ports import PortLeases

_PROGRAMS = Path(__file__).with_name("programs.py")


@contextmanager
def free_port(folder: Path) -> Iterator[int]:
    """Lease a port that nothing listens on."""
    leases = PortLeases(folder / "ports")
    try:
        yield leases.take()
    finally:
        leases.release()


@contextmanager
def stub_server(folder: Path, *args: str) -> Iterator[str]:
    """Run a stub with `args` and give its URL."""
    with free_port(folder) as port:
        url = f"http://127.0.0.1:{port}"
        process = subprocess.Popen([sys.executable, "-S", "-E", str(_PROGRAMS), "vllm", "--port", str(port), *args])
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    requests.get(f"{url}/health", timeout=1)
                    break
                except requests.RequestException:
                    assert time.monotonic() < deadline, "the stub did not start"
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait(60)
