"""The git revision of the project that is being measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pytest_kvcache.errors import ConfigError

_LISTED = 3


def uncommitted(folder: Path) -> str:
    """Return the files around `folder` that git has as changed and not committed; "" for none or no repository.

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


def commit(folder: Path) -> str:
    """Return the commit that is checked out around `folder`, with `+` where files differ from it; "" for none."""
    try:
        done = _git(folder, "rev-parse", "--quiet", "--verify", "HEAD")
    except ConfigError:
        return ""
    if done.returncode != 0:
        return ""
    return done.stdout.decode(errors="replace").strip() + ("+" if uncommitted(folder) else "")


def show(path: Path, revision: str) -> bytes | None:
    """Return a file's content at a revision, None where the revision has no such file.

    Args:
        path: Where the file is, or was, in the work tree.
        revision: Name of the revision, as git takes it.

    Raises:
        ConfigError: There is no such revision, no repository around the file, or no git.
    """
    real = path.resolve()  # of a symbolic link git keeps only where it points to
    listed = _git(real.parent, "rev-parse", "--quiet", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    if listed.returncode != 0:
        said = listed.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(
            f"git knows no revision {revision!r} around {path}" + (f": {said[0]}" if said else ""), where="--kv-against"
        )
    found = _git(real.parent, "cat-file", "blob", f"{listed.stdout.decode().strip()}:./{real.name}")
    return found.stdout if found.returncode == 0 else None


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False, timeout=20)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"git cannot be asked: {error}", where="--kv-against") from None
