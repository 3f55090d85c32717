"""Windows of writes and cold reads on mounts, judged as the product judges a load: runs in the guest.

    python -m lab.pnfs.window '[{"name": "pnfs-tcp", "folder": "/mnt/kv", "prepare": "…", "midway": "…"}]'

Each window's mount is arranged by a script, and what was told of it is written to `/lab/files/window-NAME.json`. Files
are written as LMCache writes them (a temporary file that is renamed) and are counted as stored or loaded only where
every byte was: LMCache does the same. No LMCache runs here, and the result says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lab.pnfs.folders import GUEST_CONTROL
from pytest_kvcache.check import Finding
from pytest_kvcache.errors import RunError
from pytest_kvcache.patience import NoAnswerError, within
from pytest_kvcache.preflight import fs
from pytest_kvcache.proof.storage import compare_readings
from pytest_kvcache.proof.storage_account import AccountCheck, LmcacheAccount
from pytest_kvcache.storage import rdma
from pytest_kvcache.storage.account import StorageReading
from pytest_kvcache.storage.folder import FolderAccount
from pytest_kvcache.storage.requirement import Require

_CHUNK = 1 << 20
#: Longest time for a file (s).
_PATIENCE_S = 20.0
_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass
class Moved:
    """What was written and read.

    Args:
        stored: Bytes of files that were written whole.
        loaded: Bytes of files that were read whole.
        errors: What writes and reads raised.
        hangs: Whether a write or a read did not come back; there were no more then.
        midway: Exit code of what was done in the middle.
    """

    stored: int
    loaded: int
    errors: list[str]
    midway: int = 0
    hangs: bool = False


def main(windows: Sequence[Mapping[str, Any]]) -> None:
    """Look at each window, up to the first that hangs; what was told of it is there whole or not at all."""
    for told in windows:
        arranged = shell(told["prepare"])
        found = look(told) if arranged.returncode == 0 else {"failed": arranged.stdout[-500:]}
        path = Path(GUEST_CONTROL, "files", f"window-{told['name']}.json")
        path.with_suffix(".new").write_text(json.dumps(found), encoding="utf-8")
        path.with_suffix(".new").rename(path)
        if found.get("hangs"):
            break


def shell(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the lab's own functions."""
    return subprocess.run(
        ["bash", "-c", f"set -e; . {GUEST_CONTROL}/storage.sh; {script}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def look(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what checks before a window and the judgement of the window say."""
    folder, require = Path(told["folder"]), told["require"]
    checks = checks_of(folder, require)
    own = folder / "kvcache-window"
    account = FolderAccount(own, require)
    raw: dict[str, Any] = {}
    moved = Moved(0, 0, [])
    try:
        own.mkdir(exist_ok=True)
        raw["before"] = tables(folder)
        before, raw["before"] = account.read(), tables(folder)
        names = [f"{number:03}.data" for number in range(int(told["mib"]))]
        middle = len(names) // 2
        store(own, names[:middle], moved)
        if told["midway"]:
            moved.midway = shell(told["midway"]).returncode
        store(own, names[middle:], moved)
        if not moved.hangs:
            os.sync()
            _CACHES.write_text("3")
            load(own, names, moved)
        after, raw["after"] = account.read(), tables(folder)
        judged = judge(before, after, moved, require)
    except (RunError, OSError) as error:
        raw["after"] = tables(folder)
        judged = AccountCheck((f"the storage does not say what it holds: {error}",))
    return {
        "stand_in": "files written by the lab, no LMCache",
        "checks": checks,
        "faults": list(judged.faults),
        "findings": list(judged.findings),
        "figures": dict(judged.figures),
        "moved": asdict(moved),
        "hangs": threading.active_count() > 1,
        "tables": raw,
    }


def checks_of(folder: Path, require: Require) -> list[dict[str, str]]:
    """Return what the doctor's checks of a folder find."""
    looks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("mount", lambda: fs.mount(folder, require)),
        ("writable", lambda: fs.writable(folder)),
        ("layouts", lambda: fs.layouts_used(folder, require)),
        ("space", lambda: fs.space(folder, None)),
    )
    found = []
    for name, inspect in looks:
        try:
            finding = asdict(inspect())
        except (RunError, OSError) as error:
            finding = {"status": "fail", "found": str(error), "todo": ""}
        found.append({"name": name, **finding})
        if finding["status"] == "fail":
            break
    return found


def judge(before: StorageReading, after: StorageReading, moved: Moved, require: Require) -> AccountCheck:
    """Return what the product says of the window."""
    claimed = LmcacheAccount(moved.stored, moved.stored, moved.stored, moved.loaded)
    return compare_readings(before, after, claimed, require, settled=not moved.hangs)


def store(folder: Path, names: list[str], moved: Moved) -> None:
    """Write files; one that fails is not stored."""
    for name in names:
        moved.stored += _tried("write", moved, partial(_stored, folder, name))


def _tried(what: str, moved: Moved, action: Callable[[], int]) -> int:
    """Return what an action moved (bytes), 0 where it failed or did not come back."""
    if moved.hangs:
        return 0
    try:
        return within(_PATIENCE_S, action, name=what)
    except OSError as error:
        moved.hangs = isinstance(error, NoAnswerError)
        moved.errors.append(f"{what}: {error.strerror or error}")
        return 0


def _stored(folder: Path, name: str) -> int:
    data = os.urandom(_CHUNK)
    with (folder / f".{name}").open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    (folder / f".{name}").rename(folder / name)
    return len(data)


def load(folder: Path, names: list[str], moved: Moved) -> None:
    """Read files; one that fails is not loaded."""
    for name in names:
        moved.loaded += _tried("read", moved, partial(_loaded, folder / name))


def _loaded(path: Path) -> int:
    return len(path.read_bytes())


def tables(folder: Path) -> dict[str, Any]:
    """Return what the kernel says of a folder's mount at this moment, for a capture."""
    try:
        room = within(_PATIENCE_S, lambda: os.statvfs(folder), name="statvfs")
        statvfs = {key: getattr(room, key) for key in ("f_bavail", "f_frsize", "f_blocks")}
    except OSError:
        statvfs = {}
    return {
        "statvfs": statvfs,
        "mountinfo": Path("/proc/self/mountinfo").read_text(encoding="utf-8"),
        "mountstats": Path("/proc/self/mountstats").read_text(encoding="utf-8"),
        "links": [asdict(link) for link in rdma.links()],
        "connections": rdma.rpc_connections(),
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
