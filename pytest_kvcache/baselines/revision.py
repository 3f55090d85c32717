"""Exports baselines as they are at a git revision."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pytest_kvcache.errors import BaselineError

_LINK, _FILE = "120000", "100"
#: Endings of the files of a baseline; other files beside them are not exported.
_SUFFIXES = (".json", ".requests.parquet")


def export(root: Path, revision: str, folder: Path) -> None:
    """Write the baselines below `root`, tables of requests too, into `folder` as a checkout of `revision` has them.

    Raises:
        BaselineError: git has no such revision there, cannot give one of its files, or is not installed.
    """
    listed = _git(root, "ls-tree", "-r", "-z", "--end-of-options", revision, ".")
    if listed.returncode != 0:
        said = listed.stderr.decode(errors="replace").strip()[:200]
        raise BaselineError(f"git has no revision {revision!r} here: {said}", where=str(root))
    for line in filter(None, listed.stdout.decode(errors="surrogateescape").split("\0")):
        about, _, name = line.partition("\t")
        mode, _, digest = about.split()
        if not name.endswith(_SUFFIXES) or not (mode == _LINK or mode.startswith(_FILE)):
            continue
        content = _content(root, digest, name, revision, filtered=mode != _LINK)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == _LINK:
            path.symlink_to(content.decode(errors="surrogateescape"))
        else:
            path.write_bytes(content)


def _content(root: Path, digest: str, name: str, revision: str, *, filtered: bool) -> bytes:
    """Return a file's content, passed through the filters of a checkout (Git LFS) where they work."""
    given = _git(root, "cat-file", "--filters", f"--path=./{name}", digest) if filtered else None
    if given is None or given.returncode != 0:
        given = _git(root, "cat-file", "blob", digest)
    if given.returncode != 0:
        said = given.stderr.decode(errors="replace").strip()[:200]
        raise BaselineError(f"git cannot give it: {said}", where=f"{revision}:{name}")
    return given.stdout


def _git(root: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=False)
    except FileNotFoundError:
        raise BaselineError("git is not installed", where=str(root), todo="install it, or name a folder") from None
