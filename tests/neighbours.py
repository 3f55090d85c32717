"""Other processes beside a test: one that holds the machine, and some that do nothing but work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from pytest_kvcache.runs.machine import PROCESSORS, VARIABLE

#: The part of the machine that this process of tests has for itself.
HERE = {VARIABLE: f"test-{os.getpid()}"}

HOLD = """
import sys
from pytest_kvcache.runs.machine import MachineLock
lock = MachineLock(sys.argv[2:], {"PYTEST_KVCACHE_MACHINE": sys.argv[1]})
lock.acquire(0, print)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the processors until its input ends."""
    argv = [sys.executable, "-c", HOLD, HERE[VARIABLE], PROCESSORS]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def spinning() -> Iterator[Start]:
    """Return a way to start a process that does nothing but work; all are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"], start_new_session=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()
