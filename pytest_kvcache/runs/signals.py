"""Interruptions: SIGTERM and SIGHUP end a run as Ctrl-C does, and none of them cuts a clean-up short."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

#: SIGALRM is how pytest-timeout interrupts a test; SIGUSR1 and SIGUSR2 are how batch systems give notice.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold interruptions back while the body runs (seconds at most), then deliver the first of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    # A handler that was not installed from Python (None) could not be put back.
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def end_like_ctrl_c(stop: Callable[[str], object]) -> Callable[[], None]:
    """Call `stop` with the signal's name on SIGTERM and SIGHUP; return what restores the former handlers."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handle(number: int, _frame: FrameType | None) -> None:
        stop(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGHUP)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
