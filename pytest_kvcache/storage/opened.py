"""Opens a folder in a limited time: automounts and NFS referrals come to be, and a dead server holds nobody up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: Longest time (s) for opening: mounting over a network takes seconds; a dead server never answers (`hard`, nfs(5)).
LIMIT_S = 20.0

#: With O_PATH no permission on the folder itself is needed. O_DIRECTORY has the kernel trigger what waits there;
#: looking (`stat`) and O_PATH alone see the place of an automount (open(2), `follow_automount` in fs/namei.c).
_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass
class _Try:
    """An attempt to open a folder, in a thread of its own.

    Args:
        ended: Set when the call came back.
        descriptor: What was opened, None for an error.
        error: What came of it instead.
        is_given_up: Whether nobody waits any longer.
    """

    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    descriptor: int | None = None
    error: OSError | None = None
    is_given_up: bool = False

    def open(self, folder: Path) -> None:
        """Open the folder; what comes too late is closed again."""
        try:
            found = system_open(folder)
        except OSError as error:
            self.error = error
        else:
            with self.lock:
                if self.is_given_up:
                    os.close(found)
                else:
                    self.descriptor = found
        self.ended.set()

    def wait(self, limit_s: float) -> bool:
        """Return whether the call came back within the limit; else it is given up."""
        self.ended.wait(limit_s)
        with self.lock:
            self.is_given_up = self.descriptor is None and self.error is None
        return not self.is_given_up


def system_open(folder: Path) -> int:
    """Return a descriptor of a folder, however long that takes."""
    return os.open(folder, _FLAGS)


#: Tries that did not come back: nobody waits for the same folder twice.
_hanging: dict[Path, _Try] = {}


@contextmanager
def opened(path: Path, *, limit_s: float = LIMIT_S) -> Iterator[int | None]:
    """Yield a descriptor (O_PATH) of a folder, or of its nearest existing parent; None where it may not be reached.

    Args:
        path: A path, which need not exist yet, and may be a file's.
        limit_s: Longest time (s) for each folder.

    Raises:
        TimeoutError: The folder's storage does not answer.
        OSError: The folder cannot be opened, for instance since the server does not know it any more (ESTALE).
    """
    try:
        found = (_open(folder, limit_s) for folder in (path, *path.parents))
        descriptor = next((one for one in found if one is not None), None)
    except PermissionError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_folder(path: Path, *, limit_s: float = LIMIT_S) -> bool:
    """Return whether a path is a folder, once what is mounted on demand is mounted there.

    Args:
        path: Path of a folder.
        limit_s: Longest time (s).

    Raises:
        TimeoutError: The folder's storage does not answer.
        OSError: The folder cannot be opened.
    """
    descriptor = _open(path, limit_s)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def _open(folder: Path, limit_s: float) -> int | None:
    """Return a descriptor of a folder, None where it is missing or is no folder."""
    late = f"no answer within {limit_s:.0f} s"
    before = _hanging.get(folder)
    if before is not None and not before.ended.is_set():
        raise TimeoutError(errno.ETIMEDOUT, late, os.fspath(folder))
    _hanging.pop(folder, None)
    current = _Try()
    # A daemon thread, since a system call that hangs must not keep the process from ending.
    threading.Thread(target=current.open, args=(folder,), name="kvcache-open", daemon=True).start()
    if not current.wait(limit_s):
        _hanging[folder] = current
        raise TimeoutError(errno.ETIMEDOUT, late, os.fspath(folder))
    if current.error is not None:
        if current.error.errno in _MISSING:
            return None
        raise current.error
    return current.descriptor
