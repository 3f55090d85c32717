"""Checks of a shared folder: what mount it is on, whether it can be written, whether it has room for a boot."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.check import Finding
from pytest_kvcache.patience import NoAnswerError
from pytest_kvcache.storage import caches, hanging
from pytest_kvcache.storage.layouts import evidence, judge
from pytest_kvcache.storage.mount_options import page_cache_options
from pytest_kvcache.storage.mounts import mount_of
from pytest_kvcache.storage.requirement import Require, unmet

if TYPE_CHECKING:
    from pytest_kvcache.preflight.kvsize import Stored  # not at run time: see `preflight/__init__.py`

#: An NFS server may serve the first bytes of a file without a layout; this is more than any such threshold known.
PROBE_BYTES = 4 << 20
_ALIGNMENT = 4096
_GIB = 1 << 30
#: Time (s) that 4 MiB may take; it is less than a check before a boot has.
_PATIENCE_S = 20.0
#: Below this share of free space file systems slow down, and other users of a shared one suffer.
_LITTLE = 0.05


def mount(folder: Path, require: Require, *, stand_in: bool = False) -> Finding:
    """Look at the folder's file system, and for NFS at version, transport, layout, sizes and security."""
    found = mount_of(folder)
    words = found.nfs.describe() if found.nfs else found.fstype
    text = f"{words} at {found.point}"
    if stand_in:
        return Finding("warn", f"stand-in: {text}", "figures of this tier are those of a local disk")
    missing = unmet(require, found)
    if missing:
        return Finding("fail", f'require = "{require}": {missing[0]}', missing[1])
    if require == "none" and found.fstype in {"tmpfs", "ramfs"}:
        return Finding("warn", text, "this storage is the machine's memory, and is gone with it")
    return Finding("pass", text)


def writable(folder: Path) -> Finding:
    """Look at whether a file can be made, synced, read back and removed, and how long 4 MiB take."""
    try:
        return hanging.answered(folder, _PATIENCE_S, lambda: _written_and_read(folder), name="writable")
    except NoAnswerError as error:
        return Finding("fail", f"a write of 4 MiB got {error.strerror}", hanging.TODO)
    except OSError as error:
        todo = f"let user {os.getuid()} write there, free space or raise the quota, or mount it read-write"
        return Finding("fail", f"cannot be written: {error}", todo)


def _written_and_read(folder: Path) -> Finding:
    """Write and read 4 MiB.

    Raises:
        OSError: The storage does not take them.
    """
    stat = os.statvfs(_existing(folder))
    if stat.f_blocks and stat.f_bavail * stat.f_frsize < PROBE_BYTES:
        # A full pNFS server may grant layouts all the same, and Linux's client then tries for ever.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))
    written = os.urandom(PROBE_BYTES)
    with probe_file(folder) as path:
        start = time.perf_counter()
        write_through(path, written)
        middle = time.perf_counter()
        read, direct = read_through(path)
        end = time.perf_counter()
    if read != written:
        return Finding("fail", "a file of 4 MiB read back differs from what was written", "do not trust this storage")
    write_s, read_s = middle - start, end - middle
    how = "" if direct else " (no O_DIRECT: may be the page cache's)"
    return Finding("pass", f"4 MiB written and synced in {write_s * 1e3:.0f} ms, read in {read_s * 1e3:.0f} ms{how}")


def layouts_used(folder: Path, require: Require) -> Finding:
    """Look at whether a write and a read of 4 MiB go by pNFS layouts, and over RDMA where `require` says so."""
    if require in {"none", "nfs4.1"}:
        return Finding("pass", "not required")
    # The file is removed after the counters were read: its layout is given back with it, which is no sign of trouble.
    with probe_file(folder) as path, evidence(path.parent) as seen:
        write_through(path, os.urandom(PROBE_BYTES))
        read_through(path)
    return judge(seen, require, PROBE_BYTES)


def page_cache(folder: Path) -> Finding:
    """Look for caches that may serve reads of an NFS mount without its server: such reads have the speed of RAM."""
    found = mount_of(folder)
    if not found.is_nfs:
        return Finding("pass", f"{found.fstype}: {caches.of(found.fstype)}")
    options = page_cache_options(found.options)
    if not options:
        return Finding("pass", "each read asks the server whether the file changed; pages of one that did not are kept")
    return Finding(
        "warn" if "fsc" in found.options else "pass",
        "; ".join(options),
        "LMCache reads through the page cache: what one server wrote, another on the same machine may read from RAM. "
        "Compare the mount's server_read bytes with what LMCache loaded",
    )


def space(folder: Path, need: Stored | None) -> Finding:
    """Look at whether there is room, in bytes and in files, for what one boot writes."""
    stat = os.statvfs(_existing(folder))
    free, files = stat.f_bavail * stat.f_frsize, stat.f_favail
    # btrfs, and NFS servers on btrfs, give no number of files.
    counted = stat.f_files > 0
    has = f"{free / _GIB:.1f} GiB free" + (f", room for {files} files" if counted else "")
    todo = "free some, shorten the workload, or set the tier's path to a larger file system"
    if need is None:
        return Finding("pass", f"{has}; a boot writes: unknown (model or workload of unknown size)")
    text = f"{has}; a boot writes about {need.bytes / _GIB:.2f} GiB in {need.files} files"
    if need.bytes > free or (counted and need.files > files):
        return Finding("fail", text, todo)
    if free - need.bytes < _LITTLE * stat.f_blocks * stat.f_frsize:
        return Finding("warn", text, todo)
    return Finding("pass", text)


def other_runs(folder: Path) -> Finding:
    """Look for folders of other runs, left over or in use."""
    found = sorted(p.name for p in folder.glob("kvcache-*") if p.is_dir()) if folder.is_dir() else []
    if not found:
        return Finding("pass", "none")
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return Finding(
        "warn", f"{len(found)}: {shown}", "a run at work there disturbs the figures; remove what is left of dead ones"
    )


@contextmanager
def probe_file(folder: Path) -> Iterator[Path]:
    """Yield the path of an unused file, which is removed afterwards; a missing folder is made and removed too."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".kvcache-doctor-{secrets.token_hex(6)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # another run may have put something in it meanwhile
            for made in missing:
                made.rmdir()


def write_through(path: Path, data: bytes) -> None:
    """Write `data` and wait until the storage has it.

    Raises:
        OSError: The storage did not take it, for instance because it is read-only, full or over quota.
    """
    with path.open("xb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def read_through(path: Path) -> tuple[bytes, bool]:
    """Return the content of a file, and whether it was read past the page cache for certain (O_DIRECT)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        direct = True
    except OSError:
        descriptor, direct = os.open(path, os.O_RDONLY), False
    try:
        if not direct:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return _read_all(descriptor), direct
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    # O_DIRECT wants memory aligned to the device's blocks: an anonymous map is aligned to pages.
    block = mmap.mmap(-1, 1 << 20)
    found = bytearray()
    while count := os.readv(descriptor, [block]):
        found += block[:count]
        if count % _ALIGNMENT:
            break
    return bytes(found)


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.parents) if p.exists())
