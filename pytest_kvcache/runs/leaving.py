"""Ends the run before `os._exit` ends the process without running any `finally`.

What the run started would go on otherwise. pytest-timeout's method `thread` calls `os._exit`, and so may any other
plugin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

#: Time that the main thread has to save rows and to end servers (s).
_UNWIND_S = 30.0
_POLL_S = 0.05


class Leaving:
    """Stands in for `os._exit` while a session runs.

    Args:
        busy: Returns whether the main thread boots or measures.
        end: Ends the run; a second call must do nothing.

    Attributes:
        reason: Why the main thread is being interrupted, "" while nobody leaves.
    """

    def __init__(self, busy: Callable[[], bool], end: Callable[[], object]) -> None:
        self.reason = ""
        self._busy, self._end, self._owner, self._exit = busy, end, os.getpid(), os._exit
        os._exit = self._leave

    def restore(self) -> None:
        """Give `os._exit` its original meaning back."""
        os._exit = self._exit

    def _leave(self, status: int) -> NoReturn:
        if os.getpid() == self._owner and not self.reason:  # a fork of this process owns nothing
            self.reason = f"os._exit({status}) was called"
            with contextlib.suppress(Exception):
                self._unwind(threading.main_thread())
            with contextlib.suppress(Exception):
                self._end()
        self._exit(status)

    def _unwind(self, main: threading.Thread) -> None:
        """Interrupt the main thread as SIGTERM does, and wait until it has saved what was measured.

        The end of the main thread is not waited for: pytest-timeout has it wait for the thread that leaves.
        """
        if main is not threading.current_thread() and main.ident is not None and self._busy():
            signal.pthread_kill(main.ident, signal.SIGTERM)
            deadline = time.monotonic() + _UNWIND_S
            while self._busy() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
