"""What a folder says of itself: its listing, and on NFS the kernel's counters of the mount."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.errors import RunError
from pytest_kvcache.patience import NoAnswerError
from pytest_kvcache.storage import hanging, rdma
from pytest_kvcache.storage.account import ROOM, MountReading, StorageReading
from pytest_kvcache.storage.mounts import Mount, mount_of
from pytest_kvcache.storage.requirement import Require

#: Longest time (s) to write what is in the page cache, and to list the folder.
_PATIENCE_S = 60.0
#: Prefix of the names of folders in which a server writes unfinished objects; a finished object is moved out of them.
UNFINISHED = ".tmp-"
#: What a storage without room answers (syncfs(2) too, for data that was written before).
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class FolderAccount:
    """A folder that belongs to one boot.

    Args:
        folder: The folder, which was empty when the boot began.
        require: What the tier requires of the folder's mount.
        mount: Returns the mount that a folder is on.
    """

    folder: Path
    require: Require = "none"
    mount: Callable[[Path], Mount] = mount_of

    @property
    def name(self) -> str:
        """What is read: the listing, and the mount's counters or why there are none."""
        found = self.mount(self.folder)
        return f"folder listing and mount counters: {found.describe()}" if found.nfs else _no_counters(found)

    def read(self) -> StorageReading:
        """Return files and bytes of the folder, and what its mount counts.

        Dirty pages of the page cache are written to the storage first, since a mount counts them only then.

        Raises:
            RunError: The folder is gone, cannot be read, or does not answer.
        """
        try:
            return hanging.answered(self.folder, _PATIENCE_S, self._read, name="account")
        except NoAnswerError as error:
            what = f"what was written does not come to the storage, {error.strerror}"
            raise RunError(what, where=str(self.folder), todo=hanging.TODO) from None

    def _read(self) -> StorageReading:
        """Read; where the storage does not answer, for ever."""
        try:
            found = self.mount(self.folder)
            if found.nfs:
                _sync(self.folder)
                found = self.mount(self.folder)
            files, size = listing(self.folder)
        except OSError as error:
            raise self._unreadable(error) from None
        return StorageReading(files, size, mount=_counted(found), full=hanging.full(self.folder))

    def _unreadable(self, error: OSError) -> RunError:
        """Return the error of a folder that cannot be read, with the reason where it is known."""
        where = str(self.folder)
        if error.errno in _FULL:
            return RunError(f"the storage is full: {error.strerror}", where=where, todo=ROOM)
        with suppress(OSError):
            found = self.mount(self.folder)
            if found.hides and not found.is_nfs:
                todo = f"umount {found.point}, and find out who mounts there"
                return RunError(
                    f"{found.describe()} at {found.point} hides the mount of {found.hides}", where=where, todo=todo
                )
        todo = "is it still mounted, and nothing else at work there?"
        return RunError(f"cannot be listed: {error.strerror or error}", where=where, todo=todo)


def listing(folder: Path) -> tuple[int, int]:
    """Return number and bytes of the files below a folder, but for unfinished ones.

    A file that is removed meanwhile is not counted.

    Raises:
        OSError: The folder is gone or cannot be read.
    """
    files = size = 0
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(UNFINISHED):
                        pending.append(entry.path)
                    continue
                try:
                    size += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
                files += 1
    return files, size


def _no_counters(found: Mount) -> str:
    return f"folder listing; no mount counters: {found.fstype}"


def _counted(found: Mount) -> MountReading | None:
    if found.nfs is None:
        return None
    connections = tuple(rdma.rpc_connections(rdma.SWITCHES))
    links = tuple(rdma.links(rdma.DEVICES))
    return MountReading(found.nfs, links, connections, found.server, found.automounter)


def _sync(folder: Path) -> None:
    """Write all dirty pages of the file system that holds `folder` (syncfs(2), which Python does not have)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
