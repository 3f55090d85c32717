"""A call that hangs is waited for in a limited time, and all others are as if nobody had watched."""

from __future__ import annotations

import threading

import pytest

from pytest_kvcache.check import Check, run
from pytest_kvcache.patience import NoAnswerError, within


def test_what_comes_back_in_time_is_passed_on() -> None:
    """A value is returned, None too; an error is raised, also one of a time-out of the call's own."""
    assert within(5.0, lambda: 7, name="x") == 7
    assert within(5.0, lambda: None, name="x") is None
    for error in (ValueError("no"), TimeoutError("its own"), KeyboardInterrupt()):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            within(5.0, fail, name="x")
        assert raised.value is error


def test_what_hangs_is_left_alone() -> None:
    """Who waits goes on after the limit; the call goes on too, in a thread that keeps nobody from ending."""
    goes_on = threading.Event()
    with pytest.raises(NoAnswerError, match="no answer within 0 s"):
        within(0.1, lambda: goes_on.wait(60), name="hangs")
    (left,) = (thread for thread in threading.enumerate() if thread.name == "kvcache-hangs")
    assert left.daemon
    goes_on.set()
    left.join(10)
    assert not left.is_alive()


def test_a_check_that_hangs_has_failed() -> None:
    """A check without an answer is a failure that asks for the server; the error of a check is what was found."""
    goes_on = threading.Event()

    def hang() -> None:
        goes_on.wait(60)

    def refuse() -> None:
        raise OSError(28, "No space left on device", "/mnt")

    found = run("tier pnfs", Check("writable", hang), limit_s=0.1).finding  # type: ignore[arg-type]
    goes_on.set()
    assert (found.status, found.found) == ("fail", "no answer within 0 s")
    found = run("tier pnfs", Check("writable", refuse)).finding  # type: ignore[arg-type]
    assert (found.status, found.found) == ("fail", "[Errno 28] No space left on device: '/mnt'")
