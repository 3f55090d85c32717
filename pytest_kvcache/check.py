"""Checks: quick looks at machine, engine or storage before a boot, which explain what would go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pytest_kvcache.patience import NoAnswerError, within

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
    try:
        found = within(limit_s, check.inspect, name=f"check-{check.name}")
    except NoAnswerError as error:
        found = Finding("fail", error.strerror or "", "is the server of the mount alive?")
    except OSError as error:
        found = Finding("fail", str(error))
    return CheckResult(subject, check.name, found)
