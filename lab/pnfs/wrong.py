"""Arranges each wrong mount in a guest, has the product look at it, and tells whether it gave the right reason."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.pnfs import doctor
from lab.pnfs.arrangements import ALL, RESET, Arrangement
from lab.pnfs.lab import Lab
from pytest_kvcache.errors import RunError

_MIB = 16
_LIMIT_S = 180.0
REQUIRE = "pnfs-rdma"


@dataclass(frozen=True)
class Outcome:
    """What the product said of an arrangement.

    Args:
        name: Name of the arrangement, "" for the control: the lab's own mount.
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


def look(lab: Lab, arrangement: Arrangement | None) -> Outcome:
    """Arrange a wrong mount in the guest, write and read a window, and return what the product says.

    Raises:
        RunError: It could not be arranged, or the window did not end.
    """
    name = arrangement.name if arrangement else "control"
    lab.guest.shell(RESET)
    lab.guest.shell(arrangement.prepare if arrangement else 'mount_at /mnt/kv "$(mount_options)"')
    out = f"window-{name}.json"
    told = {
        "folder": arrangement.folder if arrangement else "/mnt/kv",
        "require": REQUIRE,
        "mib": _MIB,
        "midway": arrangement.midway if arrangement else "",
        "out": f"/lab/files/{out}",
    }
    lab.run([sys.executable, "-m", "lab.pnfs.window", json.dumps(told)], env=doctor.environment(), limit_s=_LIMIT_S)
    return outcome(arrangement.name if arrangement else "", json.loads(lab.read(out)))


def outcome(name: str, told: Mapping[str, Any]) -> Outcome:
    """Return what a window told, in short."""
    failed = [check for check in told["checks"] if check["status"] == "fail"]
    refused = f"{failed[0]['name']}: {failed[0]['found']}" if failed else ""
    return Outcome(name, refused, tuple(told["faults"]), tuple(told["findings"]), told)


def faults(outcomes: Sequence[Outcome], arrangements: Sequence[Arrangement] = ALL) -> dict[str, str]:
    """Return, by the name of an arrangement, how the product was wrong about it; empty where it was always right."""
    reasons = {arrangement.name: re.compile(arrangement.reason) for arrangement in arrangements}
    found = {}
    for each in outcomes:
        taken = [name for name, reason in reasons.items() if reason.search(each.said)]
        if not each.name:
            if each.said or each.findings:
                found["control"] = f"the right mount: {each.said or each.findings}"
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
        name = each.name or "control"
        refused = f"refused: {each.refused}" if each.refused else "all checks pass"
        judged = "; ".join(each.invalid or each.findings)
        judged = f"{'invalid' if each.invalid else 'counts'}{': ' if judged else ''}{judged}"
        cells = [name, what.get(name, "nothing"), refused, judged, wrong.get(name, "right")]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def all_of_them(lab: Lab, names: Sequence[str], captures: Path | None, say: Callable[[str], None]) -> int:
    """Look at all wrong mounts, or at some; print the table; return 1 where one is wrong, or taken for another.

    Args:
        lab: A lab that is up.
        names: Which arrangements; all of them where there are none.
        captures: Folder to write what was told into, a file for each arrangement; None writes nothing.
        say: Gets the lines.
    """
    outcomes = []
    for arrangement in (None, *ALL):
        name = arrangement.name if arrangement else "control"
        if names and name not in names:
            continue
        try:
            seen = look(lab, arrangement)
        except RunError as error:
            seen = Outcome(name, "", (), (), {})
            say(f"{name}: {error}")
        else:
            say(f"{name}: {seen.said or 'a run would count'}")
        outcomes.append(seen)
        if captures is not None and seen.told:
            captures.mkdir(parents=True, exist_ok=True)
            (captures / f"{name}.json").write_text(json.dumps(seen.told, indent=1) + "\n", encoding="utf-8")
    wrong = faults(outcomes)
    for line in table(outcomes, wrong):
        say(line)
    return 1 if wrong else 0
