"""How the lab tells whether a wrong mount was caught, and for its own reason."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lab.pnfs.arrangements import ALL, Arrangement
from lab.pnfs.wrong import Outcome, faults, outcome, table

TWO = (
    Arrangement("a", "one thing is wrong", r"reason A"),
    Arrangement("b", "another thing is wrong", r"reason B"),
)


def said(name: str, *lines: str) -> Outcome:
    """Return what was said of an arrangement."""
    return Outcome(name, "", lines, (), {})


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([said("a", "for reason A"), said("b", "for reason B")], {}),
        ([said("a")], {"a": "not caught"}),
        ([said("a", "for reason B")], {"a": "taken for b"}),
        ([said("a", "for reason A", "and reason B")], {"a": "taken for a, b"}),
        ([said("a", "out of memory")], {"a": "without its reason, 'reason A'"}),
        ([said("control")], {}),
        ([said("control", "for reason A")], {"control": "the right mount: for reason A"}),
        ([Outcome("control", "", (), ("something odd",), {})], {"control": "the right mount: ('something odd',)"}),
    ],
)
def test_each_wrong_mount_has_its_own_reason(seen: list[Outcome], expected: dict[str, str]) -> None:
    """An arrangement is right only where its own reason was given, and no other one's; the right mount has none."""
    assert faults(seen, TWO) == expected


def test_the_first_failed_check_is_why_a_mount_is_refused() -> None:
    """The check that failed decides, since nothing is booted then; the window's own faults are kept beside it."""
    checks: list[dict[str, Any]] = [
        {"name": "mount", "status": "pass", "found": "fine", "todo": ""},
        {"name": "layouts", "status": "fail", "found": "reason A", "todo": ""},
    ]
    found = outcome("a", {"checks": checks, "faults": ["reason C"], "findings": []})
    assert (found.said, found.invalid) == ("layouts: reason A", ("reason C",))


def test_the_table_is_markdown() -> None:
    """Each row has name, what is wrong, what checks and window say, and whether that is right; a pipe ends no cell."""
    (_, _, row) = table([said("plain-rdma", "a | b")], {"plain-rdma": "not caught"})
    assert row == "| plain-rdma | NFS over RDMA, without pNFS | all checks pass | invalid: a / b | not caught |"


def test_arrangements_have_names_and_reasons_of_their_own() -> None:
    """No two arrangements share a name or a reason."""
    assert len({each.name for each in ALL}) == len({each.reason for each in ALL}) == len(ALL)
    assert all(re.compile(each.reason) for each in ALL)
