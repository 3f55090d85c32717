"""Reads cells, and writes one session's cells: all of them or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pytest_kvcache.baselines import requests_table
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import MAX_JSON_BYTES, RECORD_ANEW, Cell, StoredCell, parse, requests_path

#: The beginning of the pointer that Git LFS leaves in place of a file that it has not fetched (its specification, v1).
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Write:
    """A cell that is to be written.

    Args:
        new: The baseline that is to be written.
        requests: Content of the Parquet file beside it (`requests_table.pack`), which `new.requests` describes; None
            for a baseline without requests.
        old: The baseline that is stored now, for reports.
    """

    new: StoredCell
    requests: bytes | None = None
    old: StoredCell | None = None


def read(root: Path, cell: Cell) -> StoredCell | None:
    """Return the baseline of a cell, None where the cell has none.

    Raises:
        BaselineError: The file is damaged, of another schema or of another cell, or leads out of `root`.
    """
    path = cell.path(root)
    stored = read_file(path, root=root)
    if stored is not None and stored.address != cell:
        raise BaselineError(
            f"is the baseline of {stored.address} on {stored.cell.machine}, not of this place",
            where=str(path),
            todo=RECORD_ANEW,
        )
    return stored


def read_whole(root: Path, cell: Cell) -> StoredCell | None:
    """Return the baseline of a cell as `read` does, after its table of requests has been read and checked too.

    Raises:
        BaselineError: `read` or `read_requests` raises it.
    """
    stored = read(root, cell)
    if stored is not None and stored.requests is not None:
        read_requests(root, stored)
    return stored


def read_file(path: Path, *, root: Path) -> StoredCell | None:
    """Return the baseline in a file, None where there is no file; raises BaselineError as `read` does."""
    data = read_bytes(path, root=root, limit=MAX_JSON_BYTES)
    return None if data is None else parse(data, where=str(path))


def read_requests(root: Path, stored: StoredCell) -> pd.DataFrame:
    """Return the requests of a cell's boots, as `requests_table.unpack` does.

    Raises:
        BaselineError: The cell has no requests, or their file is missing, damaged or not the one that the cell names.
    """
    path = requests_path(stored.address.path(root))
    data = read_bytes(path, root=root, limit=requests_table.MAX_BYTES) if stored.requests else None
    if data is None or stored.requests is None:
        raise BaselineError("the requests of this baseline are not there", where=str(path), todo=RECORD_ANEW)
    return requests_table.unpack(data, stored.requests, where=str(path))


def read_bytes(path: Path, *, root: Path, limit: int) -> bytes | None:
    """Return the content of a file below `root`, None where there is no file.

    Raises:
        BaselineError: The file leads out of `root` through a link, is no regular file, is longer than `limit` bytes, is
            a pointer of Git LFS, or cannot be read.
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve(strict=True)):
            raise BaselineError(f"leads out of the baselines' folder, to {real}", where=str(path))
        # The file is opened without blocking, since opening a pipe would wait for a writer.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BaselineError("is not a regular file", where=str(path), todo=RECORD_ANEW)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError) as error:
        raise BaselineError(f"cannot be read: {error}", where=str(path)) from error
    if data.startswith(_LFS_POINTER):
        raise BaselineError("is a Git LFS pointer and not the file", where=str(path), todo="run `git lfs pull`")
    if len(data) > limit:
        raise BaselineError(f"is not a baseline: longer than {limit} bytes", where=str(path), todo=RECORD_ANEW)
    return data


def check_writable(root: Path) -> None:
    """Check that baselines can be written below `root`, which need not exist yet; nothing is left there.

    Raises:
        BaselineError: Baselines cannot be written there; the error says why.
    """
    folder = next(each for each in (root, *root.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        todo = "make it writable, or name another folder with --kv-baselines"
        raise BaselineError(f"baselines cannot be written there: {error}", where=str(root), todo=todo) from None


def write_all(root: Path, writes: Iterable[Write]) -> list[Path]:
    """Write all cells or none; return the paths of their JSON files.

    Every file is first written under a temporary name beside its place and synced; then each is moved to its place, a
    cell's requests before its JSON file. After a failure or an interrupt the old files are put back. Only a process
    killed between two moves leaves some cells new and some old; each file is whole even then, and a JSON file beside
    another baseline's requests is refused when the requests are read.

    Raises:
        BaselineError: A file cannot be written, or could not be read again; nothing has changed.
    """
    plan = _plan(root, writes)
    staged: list[tuple[Path, Path | None]] = []
    folders = _missing_folders([path.parent for path, _ in plan])
    try:
        for path, content in plan:
            staged.append((path, None if content is None else _stage(path, content)))
        _swap(staged)
    except BaseException as error:
        for _, temporary in staged:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise BaselineError(f"no baseline was written: {error}", where=str(root)) from error
        raise
    return [path for path, _ in plan if path.suffix == ".json"]


def _plan(root: Path, writes: Iterable[Write]) -> list[tuple[Path, bytes | None]]:
    plan: dict[Path, bytes | None] = {}
    for write in writes:
        path = write.new.address.path(root)
        if path in plan:
            raise BaselineError("is to be written twice", where=str(path))
        text = write.new.text().encode()
        parse(text, where=str(path))  # what cannot be read again must not be written
        if (write.requests is None) != (write.new.requests is None):
            raise BaselineError("names requests that are not given, or the other way round", where=str(path))
        if write.requests is not None and write.new.requests is not None:
            requests_table.unpack(write.requests, write.new.requests, where=str(requests_path(path)))
        plan[requests_path(path)] = write.requests
        plan[path] = text
    return list(plan.items())


def _missing_folders(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that are not there yet, and their missing parents, the deepest first."""
    missing = {f for folder in folders for f in (folder, *folder.parents) if not f.exists()}
    return sorted(missing, key=lambda f: len(f.parts), reverse=True)


def _stage(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _swap(staged: list[tuple[Path, Path | None]]) -> None:
    """Move every temporary file to its place (None: remove the file there); on failure put everything back."""
    undo: list[tuple[Path, Path | None]] = []
    try:
        for path, temporary in staged:
            kept = None
            if path.exists() or path.is_symlink():
                kept = path.with_name(f".{path.name}.{os.getpid()}.old")
                kept.unlink(missing_ok=True)
                _keep(path, kept)
            undo.append((path, kept))
            if temporary is not None:
                temporary.replace(path)
            else:
                path.unlink(missing_ok=True)
        for folder in {path.parent for path, _ in staged}:
            _sync(folder)
    except BaseException:
        for path, kept in reversed(undo):
            if kept is None:
                path.unlink(missing_ok=True)
            else:
                # While both names still belong to one file, replace() does nothing and leaves the second name.
                kept.replace(path)
                kept.unlink(missing_ok=True)
        raise
    for _, kept in undo:
        if kept is not None:
            kept.unlink(missing_ok=True)


def _keep(path: Path, kept: Path) -> None:
    """Give a file a second name instead of moving it, so that its place is never empty."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, kept, follow_symlinks=False)


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
