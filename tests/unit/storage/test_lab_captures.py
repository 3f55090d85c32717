"""What the product says of mounts that were captured in the pNFS lab (`python -m lab.pnfs wrong --captures`).

Soft-RoCE, client and servers in one kernel: these captures show what is correct, not what is fast.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from lab.pnfs.arrangements import ALL, CONTROL
from pytest_kvcache.proof.storage import compare_readings
from pytest_kvcache.proof.storage_account import LmcacheAccount
from pytest_kvcache.storage import hanging
from pytest_kvcache.storage.account import MountReading, StorageReading
from pytest_kvcache.storage.mounts import Mount, mount_of
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import unmet

CAPTURES = Path(__file__).parents[1] / "data" / "pnfs-lab"
NAMES = sorted(path.stem for path in CAPTURES.glob("*.json"))
WHEN = ("before", "after")
ARRANGED = {each.name: each for each in (CONTROL, *ALL)}


def mount(told: dict[str, Any], when: str, folder: str, proc: Path) -> Mount:
    """Return the mount of a folder as the kernel's captured tables give it."""
    proc.mkdir(parents=True, exist_ok=True)
    for name in ("mountinfo", "mountstats"):
        (proc / name).write_text(told["tables"][when][name])
    return mount_of(Path(folder), proc=proc)


def said(name: str, proc: Path) -> str:
    """Return why a tier that requires pNFS over RDMA must not be measured on a captured mount, "" where it may."""
    told, folder = json.loads((CAPTURES / f"{name}.json").read_text()), ARRANGED[name].folder
    before, after = (mount(told, when, folder, proc / when) for when in WHEN)
    missing = unmet("pnfs-rdma", before)
    if missing is not None:
        return missing[0]
    if (refused := told["checks"][-1])["status"] == "fail" and "got no answer" in refused["found"]:
        assert before.nfs is not None
        assert after.nfs is not None
        waited = refused["found"].partition(":")[0]
        return f"{waited}: {'; '.join(hanging.counted(before.nfs, after.nfs))}"
    looks = []
    for when, found in zip(WHEN, (before, after), strict=True):
        tables = told["tables"][when]
        assert found.nfs is not None
        links = tuple(Link(**link) for link in tables["links"])
        connections = tuple((kind, address) for kind, address in tables["connections"])
        looks.append(MountReading(found.nfs, links, connections, found.server, found.automounter))
    stored, loaded = float(told["moved"]["stored"]), float(told["moved"]["loaded"])
    claimed = LmcacheAccount(stored, stored, stored, loaded)
    files, size = (int(told["figures"].get(key, 0)) for key in ("files", "file_bytes"))
    first = StorageReading(0, 0, mount=looks[0], full=room(told, "before"))
    last = StorageReading(files, size, mount=looks[1], full=room(told, "after"))
    settled = not told["moved"].get("hangs", False)
    return "; ".join(compare_readings(first, last, claimed, "pnfs-rdma", settled=settled).faults)


def room(told: dict[str, Any], when: str) -> str:
    """Return what is said of the room that the captured storage had, "" where an older capture does not tell."""
    captured = told["tables"][when].get("statvfs")
    if not captured:
        return ""
    with patch.object(os, "statvfs", lambda _: SimpleNamespace(**captured)):
        return hanging.full(Path("/"))


@pytest.mark.parametrize("name", NAMES)
def test_each_captured_mount_has_its_own_reason(name: str, tmp_path: Path) -> None:
    """The right mount passes; each wrong one is told by its own reason and is taken for no other."""
    found = said(name, tmp_path)
    taken = [each.name for each in ALL if re.search(each.reason, found)]
    assert (bool(found), taken) == ((False, []) if name == CONTROL.name else (True, [name]))


def test_there_are_captures() -> None:
    """The right mount and several wrong ones were captured."""
    early = {"control", "plain-rdma", "pnfs-tcp", "data-server-tcp", "nfsv3", "refused", "mounted-anew"}
    hanging_ones = {"unreachable", "refusing", "data-server-stops", "fills-up"}
    assert early | hanging_ones <= set(NAMES)
