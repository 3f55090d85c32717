"""Interruptions: SIGTERM and SIGHUP end a run as Ctrl-C does, and no interruption cuts a clean-up short.

A signal that was ignored when the program started stays ignored: `nohup` ignores SIGHUP, and a shell that runs a script
ignores SIGINT for programs that it starts in the background, so that they outlive its terminal.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

#: SIGALRM is how pytest-timeout interrupts a test; SIGUSR1 and SIGUSR2 are how batch systems give notice.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)


def handle(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Callable[[], None]:
    """Install a handler for each signal that is not ignored, and return what restores the former handlers.

    A handler that was not installed from Python cannot be restored and is left alone too.
    """
    before: dict[int, Any] = {}
    for number in numbers:
        former = signal.getsignal(number)
        if former not in {signal.SIG_IGN, None}:
            before[number] = former
            signal.signal(number, handler)

    def restore() -> None:
        for number, former in before.items():
            signal.signal(number, former)

    return restore


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold interruptions back while the body runs (seconds at most), then deliver the first of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    restore = handle(_SIGNALS, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        restore()
        if caught:
            signal.raise_signal(caught[0])


def end_like_ctrl_c(stop: Callable[[str], object]) -> Callable[[], None]:
    """Call `stop` with the signal's name on SIGTERM and SIGHUP; return what restores the former handlers."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    return handle((signal.SIGTERM, signal.SIGHUP), lambda number, _: stop(signal.Signals(number).name))
