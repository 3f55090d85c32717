"""Interruptions: SIGTERM and SIGHUP end a run as Ctrl-C does, and no interruption cuts a clean-up short.

A signal that was ignored when the program started stays ignored: `nohup` ignores SIGHUP, and a shell that runs a script
ignores SIGINT for programs that it starts in the background, so that they outlive its terminal.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

#: SIGALRM is how pytest-timeout interrupts a test; SIGUSR1 and SIGUSR2 are how batch systems give notice.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)

#: How long after it was lost a signal comes again (s).
_AGAIN_S = 0.05


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
    """Call `stop` with the signal's name on SIGTERM and SIGHUP; return what restores the former handlers.

    What a handler raises, Ctrl-C's too, is lost where the interpreter has just called a finalizer: it reports such
    exceptions and goes on. These three signals are delivered again then.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    interrupt = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            if number == signal.SIGINT and callable(interrupt):
                interrupt(number, frame)
            else:
                stop(signal.Signals(number).name)
        except BaseException as error:
            _again_if_lost(number, error)
            raise

    return handle((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), handler)


def _again_if_lost(number: int, raised: BaseException) -> None:
    """Deliver a signal to the main thread again where what its handler raises ends as an unraisable exception."""
    former = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs, /) -> None:
        if lost.exc_value is not raised:
            former(lost)
            return
        # Not from within the hook, where it would be lost too.
        again = threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
