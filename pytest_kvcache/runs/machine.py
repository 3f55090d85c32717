"""Lets one session at a time measure on the same GPUs, told by UUID, or on the processors of the machine as a whole.

Two sessions that measure beside each other measure each other, and nothing in their figures says so. Each session
therefore holds a Unix socket in the kernel's abstract namespace for each device that it measures on. The kernel gives a
name to one process at a time, whoever its user is, and takes the name back when that process ends, however it ends:
there is no file that could be left or that another user could not open. The kernel also tells who holds a name
(SO_PEERCRED).

The abstract namespace belongs to a network namespace: containers with a network of their own do not see each other's
sockets.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import psutil

from pytest_kvcache.errors import RunError

#: The variable that names a part of a machine, where several are measured beside each other on purpose: by runners
#: that are pinned to cores of their own.
VARIABLE = "PYTEST_KVCACHE_MACHINE"
PROCESSORS = "processors"
_POLL_S = 0.5
_LONGEST_COMMAND = 160


class MachineLock:
    """The devices that a session measures on, held from `acquire` to `release`.

    Args:
        names: GPUs by UUID, or `PROCESSORS`.
        environ: Where `PYTEST_KVCACHE_MACHINE` is read from.
    """

    def __init__(self, names: Iterable[str], environ: Mapping[str, str] = os.environ) -> None:
        machine = environ.get(VARIABLE, "")
        self._names = {name: _address(f"{machine}:{name}") for name in sorted(set(names))}
        self._held: list[socket.socket] = []

    def acquire(self, wait_s: float, say: Callable[[str], None]) -> None:
        """Take all names, or none of them, waiting for their holders where that is allowed.

        Args:
            wait_s: Longest wait (s); 0 does not wait.
            say: Gets a line for each holder that is waited for.

        Raises:
            RunError: Another session still holds one of the names; the message names that session.
        """
        until_s = time.monotonic() + wait_s
        told = ""
        while True:
            taken = self._take()
            if not taken:
                return
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise RunError(
                    f"another session measures on it: {_holder(self._names[taken])}",
                    where=_described(taken),
                    todo="wait for it, longer with --kv-wait SECONDS, or end it",
                )
            holder = _holder(self._names[taken])
            if holder != told:
                say(f"{_described(taken)}: waiting for {holder}, for at most {left_s:.0f} s (--kv-wait)")
                told = holder
            time.sleep(min(_POLL_S, left_s))

    def release(self) -> None:
        """Give all names back; a second call does nothing."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _take(self) -> str:
        """Take all names and return ""; or take none and return the first that is held."""
        for name, address in self._names.items():
            each = socket.socket(socket.AF_UNIX)
            try:
                each.bind(address)
            except OSError:
                each.close()
                self.release()
                return name
            each.listen(64)
            self._held.append(each)
        return ""


def _address(name: str) -> bytes:
    """Return a socket's name: a digest, since only 107 bytes fit and two long names must not become one."""
    return b"\0pytest-kvcache:" + hashlib.sha256(name.encode()).hexdigest().encode()


def _described(name: str) -> str:
    return "the processors of this machine" if name == PROCESSORS else f"GPU {name}"


def _holder(address: bytes) -> str:
    """Return who holds the socket at `address`, for people: command, process id, user and since when."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(address)
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        except OSError:
            return "a session that is just ending"
    try:
        process = psutil.Process(pid)
        since = datetime.fromtimestamp(process.create_time()).astimezone().strftime("%H:%M:%S")
        command = " ".join(" ".join(process.cmdline()).split())[:_LONGEST_COMMAND] or process.name()
        return f"`{command}` (pid {pid} of {process.username()}, since {since})"
    except (psutil.Error, ValueError):
        return "a session in another container" if pid <= 0 else f"pid {pid}"
