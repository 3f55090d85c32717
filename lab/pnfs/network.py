"""The network namespace of a lab, and the wire to its guest in it. Nothing is routed out of the namespace.

Debian's own `ip` makes both, so that `ip netns` and `ip link` show them by their names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.pnfs.settings import HOST_ADDRESS, TAP, WIRE_BITS
from pytest_kvcache.errors import SetupError

_NAMED = Path("/run/netns")
_GRACE_S = 2.0


def exists(namespace: str) -> bool:
    """Return whether a namespace of that name is there."""
    return (_NAMED / namespace).exists()


def make(namespace: str) -> None:
    """Make a namespace with a wire for one guest.

    Raises:
        SetupError: The kernel or `ip` refuses.
    """
    _ip("netns", "add", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "tuntap", "add", "dev", TAP, "mode", "tap")
    _ip("-n", namespace, "addr", "add", f"{HOST_ADDRESS}/{WIRE_BITS}", "dev", TAP)
    _ip("-n", namespace, "link", "set", TAP, "up")


def inside(namespace: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` in a namespace."""
    return ["nsenter", f"--net={_NAMED / namespace}", *argv]


def is_inside(namespace: str) -> bool:
    """Return whether this process is in a namespace."""
    try:
        return Path("/proc/self/ns/net").samefile(_NAMED / namespace)
    except OSError:
        return False


def pids(namespace: str) -> list[int]:
    """Return the processes in a namespace; none where it is not there."""
    if not exists(namespace):
        return []
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, encoding="ascii", check=False)
    return [int(pid) for pid in done.stdout.split()]


def remove(namespace: str) -> list[int]:
    """End what runs in a namespace and remove it, with the wire in it; return the processes that do not end."""
    if not exists(namespace):
        return []
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 2 * _GRACE_S)):
        for pid in pids(namespace):
            _signal(pid, number)
        until_s = time.monotonic() + wait_s
        while pids(namespace) and time.monotonic() < until_s:
            time.sleep(0.05)
    left = pids(namespace)
    # A name whose namespace is gone already (its mount was undone, or never done) is only a file.
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
    (_NAMED / namespace).unlink(missing_ok=True)
    return left


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise SetupError(
            done.stderr.strip() or f"ended with {done.returncode}",
            where=f"ip {' '.join(arguments)}",
            todo="the lab needs root, with the right to make namespaces and tap devices (in a container: --privileged)",
        )
