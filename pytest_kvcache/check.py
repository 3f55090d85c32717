"""Checks: quick looks at machine, engine or storage before a boot, which explain what would go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]

#: Longest time for a check (s): a process that asks a dead NFS server waits for ever.
LIMIT_S = 60.0


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        status: `fail` where a run could not work or would measure something else; `warn` where figures may suffer.
        found: What the check saw, in words for people.
        todo: What to do about a problem, "" where there is nothing to do.
    """

    status: Status
    found: str
    todo: str = ""


@dataclass(frozen=True)
class Check:
    """A check that can be carried out.

    Args:
        name: Name of the check, in a word or two.
        inspect: Function that carries the check out. If it raises OSError, the check has failed.
        blocking: Whether the check is cheap and sure enough that its failure keeps a pair from being booted.
    """

    name: str
    inspect: Callable[[], Finding]
    blocking: bool = False


@dataclass(frozen=True)
class CheckResult:
    """A finding, with the subject and the name of its check.

    Args:
        subject: Subject of the check: `machine`, `engine`, `tier pnfs`, …
        name: Name of the check.
        finding: What the check found.
    """

    subject: str
    name: str
    finding: Finding


def run(subject: str, check: Check, *, limit_s: float = LIMIT_S) -> CheckResult:
    """Carry out a check; one that takes longer than `limit_s` (s) has failed."""
    box: list[Finding | BaseException] = []

    def inspect() -> None:
        try:
            box.append(check.inspect())
        except BaseException as error:
            box.append(error)

    # A daemon thread, since a check that hangs in a system call must not keep the process from ending.
    thread = threading.Thread(target=inspect, name=f"kvcache-check-{check.name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    found = box[0] if box else Finding("fail", f"no answer within {limit_s:.0f} s", "is the server of the mount alive?")
    if isinstance(found, OSError):
        found = Finding("fail", str(found))
    if isinstance(found, BaseException):
        raise found
    return CheckResult(subject, check.name, found)
