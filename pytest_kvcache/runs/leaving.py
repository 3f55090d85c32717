"""`os._exit` runs no `finally`, and what a run started would go on without it: the run is ended first.

pytest-timeout's method `thread` leaves in that way, and so may any other plugin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import NoReturn

#: What the main thread has to save rows, end servers and tear down tests (s).
_UNWIND_S = 30.0


class Leaving:
    """Stands in for `os._exit` while a session runs.

    Args:
        end: Ends the run; a second call must do nothing.

    Attributes:
        reason: Why the main thread is being interrupted, "" while nobody leaves.
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self.reason = ""
        self._end, self._owner, self._exit = end, os.getpid(), os._exit
        os._exit = self._leave

    def restore(self) -> None:
        """Have `os._exit` do no more than it did before."""
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
        """Interrupt the main thread as SIGTERM does, so that it keeps what was measured, and wait for its end."""
        if main is not threading.current_thread() and main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGTERM)
            main.join(_UNWIND_S)
