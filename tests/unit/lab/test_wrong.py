"""How the lab tells whether a wrong mount was caught, and for its own reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.pnfs.arrangements import ALL, Arrangement
from lab.pnfs.wrong import Outcome, all_of_them, faults, outcome, table
from pytest_kvcache.errors import RunError

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
    """Each row has name, what is wrong, what checks and window say, and whether that is right.

    No pipe and no line ends a cell.
    """
    (_, _, row) = table([said("plain-rdma", "a |\n  b")], {"plain-rdma": "not caught"})
    assert row == "| plain-rdma | NFS over RDMA, without pNFS | all checks pass | invalid: a / b | not caught |"


def test_arrangements_have_names_and_reasons_of_their_own() -> None:
    """No two arrangements share a name or a reason."""
    assert len({each.name for each in ALL}) == len({each.reason for each in ALL}) == len(ALL)
    assert all(re.compile(each.reason) for each in ALL)


class StubLab:
    """A lab whose guest tells at once of each window it was asked for, up to the first that hangs or says nothing.

    Args:
        told: What is told of each arrangement, by its name; a name that is missing never comes back.
    """

    def __init__(self, told: dict[str, dict[str, Any]]) -> None:
        self.told = told
        self.asked: list[str] = []
        self.guest = self

    def exec(self, argv: list[str], *, env: dict[str, str]) -> None:  # noqa: ARG002 - as the lab has it
        """Take the windows that are asked for."""
        self.asked = [each["name"] for each in json.loads(argv[-1])]

    def wait_for(self, path: str, limit_s: float, *, of: None) -> str:  # noqa: ARG002 - as the guest has it
        """Return what is told of a window."""
        name = path.removeprefix("files/window-").removesuffix(".json")
        if name not in self.told:
            raise RunError(f"no {path} within {limit_s:.0f} s", where="guest", todo="")
        return json.dumps(self.told[name])


@pytest.mark.parametrize("silent", [False, True], ids=["hangs", "never comes back"])
def test_a_mount_that_hangs_costs_the_others_a_new_guest(tmp_path: Path, silent: bool) -> None:
    """After a mount that hangs, or whose window says nothing, the rest are looked at in another guest, each once."""
    labs: list[StubLab] = []
    fine: dict[str, Any] = {"checks": [], "faults": [], "findings": [], "hangs": False}
    told = {each.name: fine for each in ALL[:4]}
    told[ALL[1].name] = fine | {"hangs": True}
    if silent:
        del told[ALL[1].name]

    @contextmanager
    def up() -> Iterator[Any]:
        labs.append(StubLab(told))
        yield labs[-1]

    lines: list[str] = []
    names = [each.name for each in ALL[:4]]
    assert all_of_them(up, names, tmp_path, lines.append) == 1
    assert [lab.asked for lab in labs] == [names, names[2:]]
    assert [line.partition(":")[0] for line in lines[:4]] == names
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(set(names) - ({names[1]} if silent else set()))
