"""What file system a folder is on, from the kernel's own tables (proc(5), nfs's mountstats).

The tables are bytes: names of any kind stand in them, with octal escapes for space, tab, line feed and backslash alone.
They are read as Python reads file names (`os.fsdecode`), and only line feeds end lines and only spaces end fields.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_kvcache.storage import mountstats
from pytest_kvcache.storage.mount_options import nfs_version, parse_options
from pytest_kvcache.storage.mountstats import Listed, Reading, unescape
from pytest_kvcache.storage.opened import opened

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Mount:
    """One mounted file system.

    Args:
        point: Folder that it is mounted on.
        fstype: As the kernel names it (`ext4`, `nfs4`).
        source: Device or `server:/export`.
        options: Mount options, `vers=` and `proto=` among them for NFS.
        nfs: The mount's own counters and properties, None where it is not NFS.
        automounter: The automounter's place that it is mounted on (`autofs at /mnt, timeout 60 s`), "" for none.
        hides: The NFS mount that would hold the path if this one did not lie over it (`server:/kv at /mnt/kv`), "" for
            none.
    """

    point: Path
    fstype: str
    source: str
    options: dict[str, str]
    nfs: Reading | None = field(default=None, compare=False)
    automounter: str = field(default="", compare=False)
    hides: str = field(default="", compare=False)

    @property
    def is_nfs(self) -> bool:
        """Whether the file system is NFS of any version."""
        return self.fstype in {"nfs", "nfs4"}

    @property
    def pnfs(self) -> str:
        """Layout driver that was negotiated (`LAYOUT_FLEX_FILES`), "" for none."""
        return self.nfs.layout if self.nfs else ""

    @property
    def version(self) -> tuple[int, int]:
        """NFS version, (4, 2) for instance; (0, 0) for what is not NFS."""
        return nfs_version(self.options) if self.is_nfs else (0, 0)

    @property
    def server(self) -> str:
        """Address of the mount's own server, for pNFS of the metadata server; "" where the table does not give it.

        Only mountinfo has it (`addr=`): mountstats shows the options without it.
        """
        return self.options.get("addr", "") if self.is_nfs else ""

    @property
    def is_rdma(self) -> bool:
        """Whether the mount's own transport is RDMA; `rdma6` is RDMA over IPv6 (nfs(5))."""
        return self.options.get("proto") in {"rdma", "rdma6"}

    def describe(self) -> str:
        """Return a few words for a label: `ext4`, or `nfs v4.2 over tcp, no pNFS`."""
        if not self.is_nfs:
            return self.fstype
        layout = self.pnfs or "no pNFS"
        return f"nfs v{self.options.get('vers', '?')} over {self.options.get('proto', '?')}, {layout}"


@dataclass(frozen=True)
class _Row:
    """A line of mountinfo.

    Args:
        number: Id of the mount.
        parent: Id of the mount that it lies upon.
        device: Number of the file system (`0:50`).
        mount: The rest.
    """

    number: int
    parent: int
    device: str
    mount: Mount


def mount_of(path: Path, *, proc: Path | None = None) -> Mount:
    """Return the mount that holds `path` (or its nearest existing parent).

    The folder is opened, so that the kernel itself says on which mount it came out (`mnt_id` in proc(5)'s fdinfo).

    Args:
        path: A path, which need not exist yet.
        proc: Folder with `mountinfo`, `mountstats` and `fdinfo`; by default this process's.

    Raises:
        FileNotFoundError: No mount holds it.
        OSError: The folder cannot be opened, for instance since its server does not answer (TimeoutError).
    """
    proc = proc or PROC
    # The folder stays open until the tables are read: an automounter ends no mount that is in use.
    with opened(path) as descriptor:
        number = _mount_id(proc / "fdinfo" / str(descriptor)) if descriptor is not None else None
        rows = _rows(proc)
        row = next((row for row in rows if row.number == number), None) or _walked(rows, path.resolve())
        if row is None:
            raise FileNotFoundError(f"no mount holds {path}")
        hides = _hidden(rows, row, path.absolute())
        found = replace(row.mount, automounter=_automounter(rows, row), hides=hides)
        stats = proc / "mountstats"
        if not (found.is_nfs and stats.exists()):
            return found
        # Both tables list the mounts in one order, so that of several upon each other each has its own counters.
        upon = [r for r in rows if r.mount.point == found.point and r.mount.is_nfs]
        listed = [Listed(r.mount.point, r.device, r.mount.server) for r in rows if r.mount.is_nfs]
        reading = mountstats.at(read_table(stats), found.point, upon.index(row), listed)
        return replace(found, nfs=replace(reading, read_at_s=time.monotonic()) if reading else None)


def _automounter(rows: Sequence[_Row], row: _Row) -> str:
    """Return the automounter's place that a mount is mounted on, in words; "" where nobody would end it when idle."""
    below = next((other for other in rows if other.number == row.parent and other is not row), None)
    if below is None or below.mount.fstype != "autofs":
        return ""
    timeout = below.mount.options.get("timeout", "0")
    return "" if timeout == "0" else f"autofs at {below.mount.point}, timeout {timeout} s"


def _hidden(rows: Sequence[_Row], row: _Row, path: Path) -> str:
    """Return the NFS mount at or above a path that another mount lies over, in words; "" for none.

    A mount whose point holds the path as deep as the point on which the kernel came out, or deeper, was not met on
    the way: something lies over it, or over a folder above it.
    """
    depth = len(row.mount.point.parts)
    holding = [
        other.mount
        for other in rows
        if other is not row
        and other.mount.is_nfs
        and path.is_relative_to(other.mount.point)
        and len(other.mount.point.parts) >= depth
    ]
    found = max(holding, key=lambda mount: len(mount.point.parts), default=None)
    return f"{found.source} at {found.point}" if found else ""


def read_table(path: Path) -> str:
    """Return a table of the kernel; bytes that are no UTF-8 are as in file names (PEP 383)."""
    return os.fsdecode(path.read_bytes())


def _mount_id(fdinfo: Path) -> int | None:
    """Return the id of the mount on which something was opened, None where this kernel does not tell it."""
    try:
        told = read_table(fdinfo)
    except OSError:
        return None
    number = next((line.partition(":")[2].strip(" \t") for line in told.split("\n") if line.startswith("mnt_id:")), "")
    return int(number) if number.isascii() and number.isdigit() else None


def _rows(proc: Path) -> list[_Row]:
    lines = read_table(proc / "mountinfo").split("\n")
    return [row for line in lines if (row := _parse_mountinfo(line)) is not None]


def _walked(rows: Sequence[_Row], real: Path) -> _Row | None:
    """Return the mount on which a walk from the root to `real` ends, as the kernel walks: mount upon mount.

    A mount is hidden where a later one lies over a parent of its point: the walk goes onto that one and never meets it.
    In a table without the mounts' true parents the deepest mount counts.
    """
    numbers = {row.number: row for row in rows}
    no_parents = len(rows) > 1 and len({row.parent for row in rows}) == 1
    if no_parents or any(row.parent in numbers and not _lies_upon(row, numbers[row.parent]) for row in rows):
        holding = [row for row in rows if real.is_relative_to(row.mount.point)]
        return max(reversed(holding), key=lambda row: len(row.mount.point.parts), default=None)
    roots = [row for row in rows if row.mount.point == Path("/")]
    at = next((row for row in roots if row.parent not in numbers or row.parent == row.number), next(iter(roots), None))
    for folder in (*reversed(real.parents), real):
        while (upon := _upon(rows, at, folder)) is not None:
            at = upon
    return at


def _lies_upon(row: _Row, parent: _Row) -> bool:
    return row.mount.point.is_relative_to(parent.mount.point)


def _upon(rows: Sequence[_Row], at: _Row | None, folder: Path) -> _Row | None:
    """Return what is mounted upon a mount at a folder, the last one; where no root is known, on whatever mount."""
    found = [row for row in rows if row.mount.point == folder and row is not at]
    if at is not None:
        found = [row for row in found if row.parent == at.number]
    return found[-1] if found else None


def _parse_mountinfo(line: str) -> _Row | None:
    """Parse a line of /proc/PID/mountinfo (proc(5), section 3.5 of the kernel's filesystems/proc); None for no line."""
    head, mark, tail = line.partition(" - ")
    fields = head.split(" ")
    if not mark or len(fields) < _POINT + 1 or not (fields[0].isdecimal() and fields[1].isdecimal()):
        return None
    fstype, source, options, *_ = [*tail.split(" "), "", ""]
    mount = Mount(Path(unescape(fields[_POINT])), fstype, unescape(source), parse_options(options))
    return _Row(int(fields[0]), int(fields[1]), fields[2], mount)


#: Position of the mount point in a line of mountinfo.
_POINT = 4
