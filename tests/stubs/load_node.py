"""Load nodes of this machine for tests: the real agent, also with a clock or a version that is not right."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

KEY = "a key that only tests know"
#: A program that is the real agent with a clock that others see wrongly; `at` is the time since its load began (ns).
WRONG_CLOCK = """
import sys, time, types
from pytest_kvcache.load.nodes import agent, channel
begun = []
sends = agent._Session._send_load
def begins(self, *rest):
    begun.append(time.monotonic_ns())
    return sends(self, *rest)
agent._Session._send_load = begins
def wrong():
    at = time.monotonic_ns() - begun[0] if begun else 0
    return time.monotonic_ns() + int({error})
for module in (agent, channel):
    module.time = types.SimpleNamespace(monotonic=time.monotonic, monotonic_ns=wrong, sleep=time.sleep)
from pytest_kvcache import cli
sys.exit(cli.main(sys.argv[1:]))
"""
#: The real agent of another version.
OTHER_VERSION = """
import sys, importlib.metadata
importlib.metadata.version = lambda _: "0.0.7"
from pytest_kvcache import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass
class Node:
    """A running agent.

    Args:
        address: Where it listens.
        process: The agent.
        said: What it printed.
    """

    address: str
    process: subprocess.Popen[str]
    said: list[str]


@contextmanager
def load_node(
    *flags: str,
    host: str = "127.0.0.1",
    program: str = "",
    before: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Node]:
    """Run an agent, and end it.

    Args:
        flags: More flags.
        host: Where it listens.
        program: Python text that is run in place of `pytest-kvcache`.
        before: Words before the command, such as those of `ip netns exec`.
        env: More environment variables.
    """
    run = ("-c", program) if program else ("-m", "pytest_kvcache.cli")
    process = subprocess.Popen(
        [*before, sys.executable, *run, "load-node", "--listen", f"{host}:0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "KVCACHE_LOAD_KEY": KEY, **(env or {})},
    )
    assert process.stdout is not None
    said: list[str] = []
    listens = threading.Event()

    def read(lines: Iterator[str]) -> None:
        for line in lines:
            said.append(line.rstrip())
            if "listens on" in line:
                listens.set()
        listens.set()

    thread = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    thread.start()
    try:
        assert listens.wait(60), "the agent did not start"
        first = next((line for line in said if "listens on" in line), None)
        assert first is not None, "\n".join(said)
        yield Node(first.rpartition(" ")[2], process, said)
    finally:
        # What stands before the command may pass no signal on, as `unshare --fork` does not.
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.terminate()
        process.terminate()
        process.wait(30)
        thread.join(30)
        process.stdout.close()
