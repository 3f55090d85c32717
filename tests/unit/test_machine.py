"""Two sessions on one machine do not measure each other."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import RunError
from pytest_kvcache.runs.machine import PROCESSORS, VARIABLE, MachineLock
from tests.neighbours import HERE

GPUS = ("GPU-aaaa", "GPU-bbbb", "GPU-cccc", "MIG-dddd")


def test_the_second_is_told_who_holds_it(other: subprocess.Popen[str]) -> None:
    """Without waiting, the error names process, user and command of the holder, and what to do."""
    with pytest.raises(RunError) as error:
        MachineLock([PROCESSORS], HERE).acquire(0, print)
    assert error.value.where == "the processors of this machine"
    assert f"(pid {other.pid} of " in error.value.what
    assert "-c" in error.value.what
    assert "--kv-wait" in error.value.todo


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_the_second_waits_and_says_for_whom(other: subprocess.Popen[str], end: str) -> None:
    """A session that waits says so once, and goes on however the holder ends."""
    assert other.stdin is not None
    threading.Timer(0.7, other.kill if end == "killed" else other.stdin.close).start()
    said: list[str] = []
    lock = MachineLock([PROCESSORS], HERE)
    lock.acquire(30, said.append)
    lock.release()
    assert [f"waiting for `{sys.executable}" in line and f"(pid {other.pid} of " in line for line in said] == [True]


def test_a_wait_that_was_too_short(other: subprocess.Popen[str]) -> None:
    """After the time that was allowed the holder is named, and nothing is held."""
    lock = MachineLock([PROCESSORS, "GPU-aaaa"], HERE)
    with pytest.raises(RunError, match=f"pid {other.pid}"):
        lock.acquire(0.6, lambda _: None)
    free = MachineLock(["GPU-aaaa"], HERE)
    free.acquire(0, print)
    free.release()


@given(st.sets(st.sampled_from(GPUS), min_size=1), st.sets(st.sampled_from(GPUS), min_size=1))
def test_gpus_are_shared_by_nobody(one: set[str], two: set[str]) -> None:
    """Two sessions run beside each other exactly if they have no GPU in common; who fails holds none of its own."""
    first, second, third = (MachineLock(names, HERE) for names in (one, two, two - one))
    first.acquire(0, print)
    try:
        if one & two:
            with pytest.raises(RunError, match="another session"):
                second.acquire(0, print)
            third.acquire(0, print)
        else:
            second.acquire(0, print)
    finally:
        for each in (first, second, third):
            each.release()


def test_parts_of_a_machine_have_names(other: subprocess.Popen[str]) -> None:
    """Runners that are pinned to cores of their own say so and measure beside each other."""
    lock = MachineLock([PROCESSORS], {VARIABLE: f"{HERE[VARIABLE]}-other"})
    lock.acquire(0, print)
    lock.release()
    assert other.poll() is None


def test_long_names_of_parts_stay_apart() -> None:
    """However long the name of a part is, it is told from others, and its GPUs from each other."""
    long = "x" * 200
    locks = [MachineLock([name], {VARIABLE: long + end}) for end in ("a", "b") for name in GPUS]
    try:
        for lock in locks:
            lock.acquire(0, print)
        with pytest.raises(RunError):
            MachineLock([GPUS[0]], {VARIABLE: f"{long}a"}).acquire(0, print)
    finally:
        for lock in locks:
            lock.release()
