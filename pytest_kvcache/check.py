"""What a check is: something to look at before a boot that costs little and explains much."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]

#: A dead NFS server answers never; whoever asks waits until it is killed.
LIMIT_S = 60.0


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        status: `fail` where a run could not work or would measure something else; `warn` where figures may suffer.
        found: What is there.
        todo: What to do about it, "" where nothing is.
    """

    status: Status
    found: str
    todo: str = ""


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Args:
        name: In a word or two.
        inspect: Does it. May raise OSError, which is a failure of the check.
        blocking: Whether it is cheap and sure enough to keep a pair from being booted.
    """

    name: str
    inspect: Callable[[], Finding]
    blocking: bool = False


@dataclass(frozen=True)
class CheckResult:
    """A finding with where it belongs.

    Args:
        subject: `machine`, `engine`, `tier pnfs`, …
        name: Of the check.
        finding: What it found.
    """

    subject: str
    name: str
    finding: Finding


def run(subject: str, check: Check, *, limit_s: float = LIMIT_S) -> CheckResult:
    """Carry out a check, for at most `limit_s` (s)."""
    box: list[Finding | BaseException] = []

    def inspect() -> None:
        try:
            box.append(check.inspect())
        except BaseException as error:
            box.append(error)

    # A daemon: a look that hangs in a system call must not hold the process at its end.
    thread = threading.Thread(target=inspect, name=f"kvcache-check-{check.name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    found = box[0] if box else Finding("fail", f"no answer within {limit_s:.0f} s", "is the server of the mount alive?")
    if isinstance(found, OSError):
        found = Finding("fail", str(found))
    if isinstance(found, BaseException):
        raise found
    return CheckResult(subject, check.name, found)
