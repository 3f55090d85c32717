"""TCP ports for a run: free now, and leased so that no other run on the machine picks the same ports."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_kvcache.errors import RunError

#: This range lies below the one that Linux hands out for outgoing connections (32768 and up), so that no such
#: connection takes a port in the minute between its choice and a server's listening on it.
_RANGE = range(18000, 32000)
_LOOPBACK = "127.0.0.1"


class PortLeases:
    """Hands out ports and holds a lease on each until `release`.

    Args:
        folder: Folder with a lock file for each leased port, common to all runs of this user.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._held: list[FileLock] = []

    def take(self, host: str = _LOOPBACK) -> int:
        """Return a port on which nothing listens and which no other run has leased.

        Args:
            host: Address of this machine at which it must be free; it is free on loopback in any case.

        Raises:
            RunError: No port is left.
        """
        for port in _shuffled():
            lock = FileLock(self._folder / f"{port}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            if _is_free(port) and (host == _LOOPBACK or _is_free(port, host)):
                self._held.append(lock)
                return port
            lock.release()
        raise RunError(f"no free port between {_RANGE.start} and {_RANGE.stop}", todo="`ss -ltn` shows who has them")

    def release(self) -> None:
        """Give all ports back."""
        for lock in self._held:
            lock.release()
        self._held.clear()


def free_ports(count: int) -> list[int]:
    """Return up to `count` ports on which nothing listens just now; none of them is leased."""
    found: list[int] = []
    for port in _shuffled():
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    return found


def _shuffled() -> Iterator[int]:
    """Yield all ports of the range, beginning anywhere, in steps of more than a pair's ports."""
    start, step = secrets.randbelow(len(_RANGE)), 1009  # no divisor of the number of ports
    return (_RANGE[(start + count * step) % len(_RANGE)] for count in range(len(_RANGE)))


def _is_free(port: int, host: str = _LOOPBACK) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
