"""Arranges each wrong mount in a guest, has the product look at it, and tells whether it gave the right reason."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.pnfs import doctor
from lab.pnfs.arrangements import ALL, CONTROL, RESET, Arrangement
from lab.pnfs.lab import Lab
from pytest_kvcache.errors import RunError

_MIB = 16
_LIMIT_S = 200.0
REQUIRE = "pnfs-rdma"

Up = Callable[[], AbstractContextManager[Lab]]


@dataclass(frozen=True)
class Outcome:
    """What the product said of an arrangement.

    Args:
        name: Name of the arrangement.
        refused: Why a check would keep a pair from being booted; "" where all pass.
        invalid: Why a load in the window would be invalid; empty where it would count.
        findings: What was found beside, a line each.
        told: All that the window told.
    """

    name: str
    refused: str
    invalid: tuple[str, ...]
    findings: tuple[str, ...]
    told: Mapping[str, Any]

    @property
    def said(self) -> str:
        """What decides: why nothing is booted, else why the load does not count; "" where a run would have counted."""
        return self.refused or "; ".join(self.invalid)


def windows(lab: Lab, arrangements: Sequence[Arrangement]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Have the guest arrange each mount and look at it; yield each name with what was told, in their order.

    One process of the guest looks at all of them, since a Python takes long to start there. It ends with the first one
    that hangs: no clean-up gets past such a mount, and the rest want a new guest.
    """
    told = [
        {
            "name": each.name,
            "folder": each.folder,
            "require": REQUIRE,
            "mib": _MIB,
            "prepare": f"{RESET}; {each.prepare}",
            "midway": each.midway,
        }
        for each in arrangements
    ]
    process = lab.exec([sys.executable, "-m", "lab.pnfs.window", json.dumps(told)], env=doctor.environment())
    for each in arrangements:
        try:
            text = lab.guest.wait_for(f"files/window-{each.name}.json", _LIMIT_S, of=process)
        except RunError as error:
            yield each.name, {"failed": str(error)}
            return
        found: Mapping[str, Any] = json.loads(text)
        yield each.name, found
        if hangs(found):
            return


def hangs(told: Mapping[str, Any]) -> bool:
    """Return whether the guest may still wait for that mount, or was not seen to come back from it."""
    return "failed" in told or told.get("hangs", False)


def outcome(name: str, told: Mapping[str, Any]) -> Outcome:
    """Return what a window told, in short; a window that could not be looked at says so in its findings."""
    if "failed" in told:
        return Outcome(name, "", (), (f"NOT LOOKED AT: {told['failed']}",), {})
    failed = [check for check in told["checks"] if check["status"] == "fail"]
    refused = f"{failed[0]['name']}: {failed[0]['found']}" if failed else ""
    return Outcome(name, refused, tuple(told["faults"]), tuple(told["findings"]), told)


def faults(outcomes: Sequence[Outcome], arrangements: Sequence[Arrangement] = ALL) -> dict[str, str]:
    """Return, by the name of an arrangement, how the product was wrong about it; empty where it was always right."""
    reasons = {arrangement.name: re.compile(arrangement.reason) for arrangement in arrangements}
    found = {}
    for each in outcomes:
        taken = [name for name, reason in reasons.items() if reason.search(each.said)]
        if each.name == CONTROL.name:
            if each.said or each.findings:
                found[each.name] = f"the right mount: {each.said or each.findings}"
        elif not each.said:
            found[each.name] = "not caught"
        elif taken != [each.name]:
            found[each.name] = (
                f"taken for {', '.join(taken)}" if taken else f"without its reason, {reasons[each.name].pattern!r}"
            )
    return found


def table(outcomes: Sequence[Outcome], wrong: Mapping[str, str]) -> list[str]:
    """Return the table as Markdown."""
    what = {arrangement.name: arrangement.what for arrangement in ALL}
    lines = ["| arrangement | what is wrong | before a boot | after a window | |", "|---|---|---|---|---|"]
    for each in outcomes:
        refused = f"refused: {each.refused}" if each.refused else "all checks pass"
        judged = "; ".join(each.invalid or each.findings)
        judged = f"{'invalid' if each.invalid else 'counts'}{': ' if judged else ''}{judged}"
        cells = [each.name, what.get(each.name, "nothing"), refused, judged, wrong.get(each.name, "right")]
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    return lines


def all_of_them(up: Up, names: Sequence[str], captures: Path | None, say: Callable[[str], None]) -> int:
    """Look at all wrong mounts, or at some; print the table; return 1 where one is wrong, or taken for another.

    Args:
        up: Brings up a lab without mounts; called again after each arrangement that hangs.
        names: Which arrangements; all of them where there are none.
        captures: Folder to write what was told into, a file for each arrangement; None writes nothing.
        say: Gets the lines.
    """
    left = [each for each in (CONTROL, *ALL) if not names or each.name in names]
    outcomes = []
    while left:
        with up() as lab:
            for name, told in windows(lab, left):
                seen = outcome(name, told)
                outcomes.append(seen)
                left = left[1:]
                say(f"{name}: {seen.said or '; '.join(seen.findings) or 'a run would count'}")
                if captures is not None and seen.told:
                    captures.mkdir(parents=True, exist_ok=True)
                    (captures / f"{name}.json").write_text(json.dumps(seen.told, indent=1) + "\n", encoding="utf-8")
    wrong = faults(outcomes)
    for line in table(outcomes, wrong):
        say(line)
    return 1 if wrong else 0
