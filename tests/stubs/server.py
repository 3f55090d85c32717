"""A stub vLLM server in a process of its own, for tests of the client."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
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


@dataclass
class StubPair:
    """Two stub servers behind a stub router, which a test has started by itself.

    Args:
        servers: Base URL of each server by name.
        router: Base URL of the router, with /v1.
        processes: The running programs by name.
    """

    servers: dict[str, str]
    router: str
    processes: dict[str, subprocess.Popen[bytes]]
    _argv: dict[str, list[str]]

    def restart(self, name: str) -> None:
        """End a program and start it again on the same port."""
        self.processes[name].terminate()  # with what it has started
        self.processes[name].wait(60)
        self.processes[name] = subprocess.Popen(self._argv[name])
        _wait(self.servers[name])


@contextmanager
def stub_pair(folder: Path, *args: str) -> Iterator[StubPair]:
    """Run two servers that name themselves, with `args`, and a router before them."""
    leases = PortLeases(folder / "ports")
    program = [sys.executable, "-S", "-E", str(_PROGRAMS)]
    servers, argv = {}, {}
    for name in ("vllm-0", "vllm-1"):
        port = leases.take()
        servers[name] = f"http://127.0.0.1:{port}"
        argv[name] = [*program, "vllm", "--port", str(port), "--response-role", f"assistant@{name}", *args]
    port = leases.take()
    argv["router"] = [*program, "vllm-router", "--port", str(port), "--worker-urls", *servers.values()]
    processes = {name: subprocess.Popen(each, stdout=subprocess.DEVNULL) for name, each in argv.items()}
    try:
        for url in (*servers.values(), f"http://127.0.0.1:{port}"):
            _wait(url)
        yield StubPair(servers, f"http://127.0.0.1:{port}/v1", processes, argv)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(60)
        leases.release()


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            requests.get(f"{url}/health", timeout=1)
            return
        except requests.RequestException:
            assert time.monotonic() < deadline, "the stub did not start"
            time.sleep(0.05)


@contextmanager
def stub_server(folder: Path, *args: str) -> Iterator[str]:
    """Run a stub with `args` and give its URL."""
    with free_port(folder) as port:
        url = f"http://127.0.0.1:{port}"
        process = subprocess.Popen([sys.executable, "-S", "-E", str(_PROGRAMS), "vllm", "--port", str(port), *args])
        children: list[psutil.Process] = []
        try:
            _wait(url)
            children = psutil.Process(process.pid).children(recursive=True)
            yield url
        finally:
            process.terminate()
            process.wait(60)
            for child in children:  # of a stub that died as it was told to: nobody else ends them
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.terminate()
