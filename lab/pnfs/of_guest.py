"""What the guest's storage says of itself, asked from the host: the tier's checks, and the account around each load.

The counters are those of the guest's kernel, read there by the same code that reads a mount of this machine
(`storage_told.py`). Each LMCache server has a mount of its own of one export, so that a load's account is that of all
these mounts together.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from lab.pnfs import doctor
from lab.pnfs.lab import Lab
from pytest_kvcache.check import Check, Finding, Status
from pytest_kvcache.errors import RunError
from pytest_kvcache.preflight.kvsize import Stored
from pytest_kvcache.storage.account import StorageReading
from pytest_kvcache.storage.data_path import OF_CLIENT
from pytest_kvcache.storage.mountstats import Operation, Reading
from pytest_kvcache.storage.requirement import Require

_PROGRAM = Path(__file__).with_name("storage_told.py")
#: A Python of the guest takes seconds to start, and a slow link more.
_LIMIT_S = 120.0
#: Checks that keep a pair from being booted, as those of a folder of this machine do (`tiers/fs.py`).
_BLOCKING = frozenset({"writable", "layouts", "space"})
_READINGS = TypeAdapter(list[StorageReading])


def ask(lab: Lab, what: str, folders: Sequence[str], **more: Any) -> Any:
    """Return the guest's answer to a question of `storage_told.py`.

    Raises:
        RunError: The storage cannot be asked, or the guest does not answer.
    """
    out = f"{what}-{secrets.token_hex(4)}.json"
    told = {"what": what, "folders": list(folders), "out": f"/lab/files/{out}", **more}
    argv = [sys.executable, "-P", str(_PROGRAM), json.dumps(told)]
    lab.run(argv, env=doctor.environment(), limit_s=_LIMIT_S)
    answer = json.loads(lab.read(out))
    if "error" in answer:
        raise RunError(**answer["error"])
    return answer["answer"]


def checks(lab: Lab, folders: Sequence[str], require: Require, need: Stored | None) -> list[Check]:
    """Return the checks of a lab's mounts, which the guest carries out here: its Python alone takes seconds to start.

    Args:
        lab: A lab that is up.
        folders: Folders of the guest, one on each mount.
        require: What the tier requires of them.
        need: What a boot stores; None where that is not known.
    """
    try:
        rows = ask(lab, "checks", folders, require=require, need=asdict(need) if need else None)
    except RunError as error:
        failed = Finding("fail", error.what, error.todo)
        return [Check("mounts", lambda: failed, blocking=True)]
    return [_check(row) for row in rows]


def _check(row: Mapping[str, str]) -> Check:
    found = Finding(cast("Status", row["status"]), row["found"], row["todo"])
    return Check(f"{row['name']}, {row['folder']}", lambda: found, blocking=row["name"] in _BLOCKING)


@dataclass(frozen=True)
class GuestAccount:
    """The folder of one boot in the guest, as each of its mounts shows it.

    Args:
        lab: The lab.
        folders: The folder by each mount; the first is that of the first LMCache server.
        require: What the tier requires of the mounts.
    """

    lab: Lab
    folders: tuple[str, ...]
    require: Require

    @property
    def name(self) -> str:
        """What is read."""
        return f"folder listing and counters of {len(self.folders)} mounts, in the guest's kernel (soft-RoCE)"

    def read(self) -> StorageReading:
        """Return files and bytes of the folder, and what its mounts count together.

        Raises:
            RunError: The folder is gone or cannot be read, or the guest has ended.
        """
        return together(_READINGS.validate_python(ask(self.lab, "account", self.folders, require=self.require)))


def together(readings: Sequence[StorageReading]) -> StorageReading:
    """Return the readings of several mounts of one export as one, as if its users shared a mount.

    Args:
        readings: In the order in which they were taken. All mounts send by the same transports, so that the last
            reading has the counters of the others at its own moment.

    Raises:
        RunError: The mounts list different files, or one of them is no NFS mount.
    """
    last = readings[-1]
    if any((each.files, each.bytes) != (last.files, last.bytes) for each in readings):
        shown = ", ".join(f"{each.bytes} bytes in {each.files} files" for each in readings)
        raise RunError(f"the mounts of one export list different files: {shown}", where="guest")
    if last.mount is None or any(each.mount is None for each in readings):
        raise RunError("a folder is on no NFS mount", where="guest", todo="is something mounted over it?")
    whole = last.mount.reading
    now = {(m.source, m.point): m for m in whole.neighbours}
    others = [now.get((m.reading.source, m.reading.point), m.reading) for each in readings[:-1] if (m := each.mount)]
    return replace(last, mount=replace(last.mount, reading=_summed([*others, whole])))


def _summed(mounts: Sequence[Reading]) -> Reading:
    last = mounts[-1]
    names = {name for each in mounts for name in each.operations}
    here = {(each.source, each.point) for each in mounts}
    return Reading(
        source=_one([each.source for each in mounts]),
        point=Path(" + ".join(str(each.point) for each in mounts)),
        fstype=_one([each.fstype for each in mounts]),
        options=_options([each.options for each in mounts]),
        # The youngest tells of any that was mounted anew.
        age_s=min(each.age_s for each in mounts),
        layout=_one([each.layout for each in mounts]),
        flavor=_one([each.flavor for each in mounts]),
        events=tuple(map(sum, zip(*(each.events for each in mounts), strict=False))),
        bytes={name: sum(each.bytes.get(name, 0) for each in mounts) for name in last.bytes},
        transports=last.transports,
        operations={name: _operation(name, mounts) for name in names},
        neighbours=tuple(m for m in last.neighbours if (m.source, m.point) not in here),
        read_at_s=last.read_at_s,
    )


def _operation(name: str, mounts: Sequence[Reading]) -> Operation:
    rows = [each.operation(name) for each in mounts]
    if name in OF_CLIENT:  # of the client as a whole: the rows of every mount have them
        return rows[-1]
    return Operation(*(sum(getattr(row, key) for row in rows) for key in Operation.__dataclass_fields__))


def _options(options: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the options of all mounts; one that they do not share has the values of each."""
    names = dict.fromkeys(name for each in options for name in each)
    return {name: _one([each.get(name, "-") for each in options]) for name in names}


def _one(values: Sequence[str]) -> str:
    """Return a text that all mounts share, or those of each."""
    return "|".join(dict.fromkeys(values))
