"""Why a folder does not answer: what the kernel counted of its mount while somebody waited."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pytest_kvcache.errors import RunError
from pytest_kvcache.patience import NoAnswerError, within
from pytest_kvcache.storage import data_path, mount_delta, mounts, mountstats
from pytest_kvcache.storage.mountstats import Reading

_T = TypeVar("_T")
#: What a person looks at where a folder does not answer.
TODO = "are the mount's servers alive, its data servers too? see the client's kernel log (dmesg | grep -i nfs)"
#: A mount whose server is alive tells its free space within this time (s).
_SOON_S = 5.0
#: Less free space (bytes) than any write of a boot.
_NOTHING = 1 << 20


@dataclass(frozen=True)
class Wait:
    """A wait for a folder.

    Args:
        folder: The folder.
        before: Counters of its mount when the wait began; None where it is no NFS mount, or did not answer then.
    """

    folder: Path
    before: Reading | None

    def why(self) -> str:
        """Return what is known of the cause, in words; "" for nothing. The folder is not opened.

        A full storage explains all that the kernel may have counted.
        """
        return full(self.folder) or "; ".join(_counted(self.before) if self.before else [])


def begin(folder: Path) -> Wait:
    """Return a wait that begins now."""
    try:
        return Wait(folder, mounts.mount_of(folder).nfs)
    except OSError:
        return Wait(folder, None)


def answered(folder: Path, limit_s: float, action: Callable[[], _T], *, name: str) -> _T:
    """Return what `action` returns, which asks a folder that may not answer.

    Args:
        folder: The folder.
        limit_s: Longest time (s).
        action: What to call.
        name: Name of its thread.

    Raises:
        NoAnswerError: It did not come back in time; the error has what is known of the cause.
    """
    wait = begin(folder)
    try:
        return within(limit_s, action, name=name)
    except NoAnswerError as error:
        raise NoAnswerError(error.errno, ": ".join(filter(None, (error.strerror, wait.why())))) from None


def full(folder: Path) -> str:
    """Return that the storage of a folder is full, with its figures; "" where it is not, or does not say."""
    try:
        stat = within(_SOON_S, lambda: os.statvfs(folder), name="statvfs")
    except OSError:
        return ""
    free, size = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    return f"the storage is full ({free >> 10} KiB of {size >> 20} MiB are free)" if size and free < _NOTHING else ""


def _counted(before: Reading) -> list[str]:
    after = mountstats.at(mounts.read_table(mounts.PROC / "mountstats"), before.point)
    return ["it is not mounted any more"] if after is None else counted(before, after)


def counted(before: Reading, after: Reading) -> list[str]:
    """Return what two readings of a mount say of requests that did not come to an end between them."""
    try:
        grown, way = mount_delta.delta(before, after), data_path.between(before, after)
    except RunError as error:
        return [error.what]
    found = []
    if returned := grown.operation("LAYOUTRETURN").ops:
        refused = f"refuse what they are sent ({way.errors} WRITEs and READs failed)"
        found.append(
            f"in {grown.seconds} s {returned} layouts were given back: the data servers that the server names "
            + (refused if way.errors else "cannot be reached")
        )
    elif way.errors:
        found.append(f"{way.errors} WRITEs and READs failed")
    late = {name: now.timeouts - before.operation(name).timeouts for name, now in after.operations.items()}
    if told := ", ".join(f"{name} {count}" for name, count in late.items() if count):
        found.append(f"requests got no answer and were sent again: {told}")
    if not any(operation.ops for operation in grown.operations.values()):
        found.append("its server answered nothing meanwhile")
    return found
