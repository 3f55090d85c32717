"""A timer that wakes an event loop at a time of CLOCK_MONOTONIC, to the microsecond (timerfd_create(2))."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import struct
import time

_TIMERSPEC = struct.Struct("@qqqq")
_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


class Timer:
    """A descriptor that becomes readable at the time for which the timer is armed."""

    def __init__(self) -> None:
        #: To be watched for reading.
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._armed_s = -1.0

    def arm(self, when_s: float) -> None:
        """Have `fd` become readable at `when_s` (CLOCK_MONOTONIC), and at no other time."""
        if when_s == self._armed_s:
            return
        self._armed_s = when_s
        seconds, fraction = divmod(max(when_s, 0.0), 1.0)
        spec = _TIMERSPEC.pack(0, 0, int(seconds), max(int(fraction * 1e9), 1))
        _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, spec, None)

    def read(self) -> None:
        """Take note that the time has come; `arm` sets another one, or the same again."""
        self._armed_s = -1.0
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
