"""Baselines as git has them at a revision."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pytest_kvcache.errors import BaselineError


def export(root: Path, revision: str, folder: Path) -> None:
    """Write the baselines below `root` as they are at a revision into a folder, tables of requests too.

    Raises:
        BaselineError: git has no such revision there.
    """
    top = ["git", "-C", str(root)]
    listed = subprocess.run(
        [*top, "ls-tree", "-r", "-z", "--name-only", "--end-of-options", revision, "."],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    if listed.returncode != 0:
        raise BaselineError(f"git has no revision {revision!r} here: {listed.stderr.strip()[:200]}", where=str(root))
    for name in filter(None, listed.stdout.split("\0")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            subprocess.run([*top, "show", f"{revision}:./{name}"], stdout=out, check=True)
