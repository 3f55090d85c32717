"""Calls that may hang in the kernel: who asks a dead NFS server waits for ever, and cannot be told to stop."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class NoAnswerError(TimeoutError):
    """A call that did not come back within its time."""


def within(limit_s: float, action: Callable[[], _T], *, name: str) -> _T:
    """Return what `action` returns, or raise what it raises.

    Args:
        limit_s: Longest time (s). A call that takes longer is left alone: its thread goes on, and keeps nobody from
            ending.
        action: What to call.
        name: Name of the thread.

    Raises:
        NoAnswerError: The call did not come back in time.
    """
    returned: list[_T] = []
    raised: list[BaseException] = []

    def act() -> None:
        try:
            returned.append(action())
        except BaseException as error:
            raised.append(error)

    # A daemon thread, since a system call that hangs must not keep the process from ending.
    thread = threading.Thread(target=act, name=f"kvcache-{name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not returned:
        raise NoAnswerError(errno.ETIMEDOUT, f"no answer within {limit_s:.0f} s")
    return returned[0]
