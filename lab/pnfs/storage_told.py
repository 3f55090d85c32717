"""What the guest's kernel says of its mounts, by the plugin's own code: runs in the guest, as a program.

    python -P lab/pnfs/storage_told.py '{"what": "account", "folders": ["/mnt/kv/run", …], "out": "/lab/files/NAME", …}'

It is started by its path, and imports only what it needs for the question: under User-Mode Linux a second of imports
is five. The answer is a file of JSON. `of_guest.py` asks, on the host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_kvcache.errors import RunError


def account(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the storage says of itself, as each of its mounts shows it.

    The last reading is taken last, and has the others' counters of the same moment as its neighbours.
    """
    from pytest_kvcache.storage.folder import FolderAccount  # noqa: PLC0415

    return [asdict(FolderAccount(Path(folder), told["require"]).read()) for folder in told["folders"]]


def mounts(told: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return in a few words what each folder is on, and why that is not what is required."""
    from pytest_kvcache.storage.mounts import mount_of  # noqa: PLC0415
    from pytest_kvcache.storage.requirement import unmet  # noqa: PLC0415

    found = []
    for folder in told["folders"]:
        mount = mount_of(Path(folder))
        what, todo = unmet(told["require"], mount) or ("", "")
        found.append({"folder": folder, "mount": mount.describe(), "unmet": what, "todo": todo})
    return found


def checks(told: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what the tier `fs` checks of each folder before a boot."""
    from pytest_kvcache.preflight import fs  # noqa: PLC0415

    require = told["require"]
    need: Any = SimpleNamespace(**told["need"]) if told["need"] else None  # a `kvsize.Stored`, whose module is large
    found = []
    for folder in map(Path, told["folders"]):
        looks: dict[str, Callable[[], Any]] = {
            "mount": lambda at=folder: fs.mount(at, require),  # type: ignore[misc]
            "writable": lambda at=folder: fs.writable(at),  # type: ignore[misc]
            "layouts": lambda at=folder: fs.layouts_used(at, require),  # type: ignore[misc]
            "page cache": lambda at=folder: fs.page_cache(at),  # type: ignore[misc]
            "space": lambda at=folder: fs.space(at, need),  # type: ignore[misc]
            "other runs": lambda at=folder: fs.other_runs(at),  # type: ignore[misc]
        }
        for name, look in looks.items():
            try:
                finding = asdict(look())
            except OSError as error:
                finding = {"status": "fail", "found": str(error), "todo": ""}
            found.append({"folder": str(folder), "name": name, **finding})
    return found


ASKED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"account": account, "mounts": mounts, "checks": checks}


def main(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a question, or the error that it ended with."""
    try:
        return {"answer": ASKED[told["what"]](told)}
    except RunError as error:
        return {"error": {"what": error.what, "where": error.where, "todo": error.todo}}
    except OSError as error:
        return {"error": {"what": str(error), "where": "", "todo": "is it still mounted?"}}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    Path(asked["out"]).write_text(json.dumps(main(asked), default=str), encoding="utf-8")
