"""The git revision of the project that is being measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

_LISTED = 3


def uncommitted(folder: Path) -> str:
    """Return what of the repository around `folder` is changed and not committed, "" where nothing is or there is none.

    Files that git does not know are left out: results are among them.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    files = [line[3:] for line in done.stdout.splitlines()]
    more = len(files) - _LISTED
    return ", ".join(files[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def show(folder: Path, revision: str, path: str) -> str | None:
    """Return a file's content at a revision, None where there is no such revision or file."""
    done = subprocess.run(
        ["git", "-C", str(folder), "show", f"{revision}:./{path}"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=20,
    )
    return done.stdout if done.returncode == 0 else None
