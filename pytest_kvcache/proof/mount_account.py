"""Compare LMCache's account of a load with the kernel's counters of the NFS mount that the load went over.

Other users of the mount on this machine can only add to its counters. So fewer bytes written than LMCache stored are a
fault. Fewer bytes read than LMCache loaded are no fault: the page cache served the rest, and its share is a finding,
since that share was loaded at the speed of RAM. Dirty pages are written before the mount is asked
(`storage/folder.py`).
"""

from __future__ import annotations

from pytest_kvcache.errors import RunError
from pytest_kvcache.proof.storage_account import TOLERANCE, AccountCheck, LmcacheAccount
from pytest_kvcache.storage import data_path, layouts, mount_delta
from pytest_kvcache.storage.account import MountReading
from pytest_kvcache.storage.data_path import DataPath
from pytest_kvcache.storage.layouts import LayoutEvidence
from pytest_kvcache.storage.mount_delta import Delta
from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.requirement import Require


def of_mount(before: MountReading, after: MountReading, claimed: LmcacheAccount, require: Require) -> AccountCheck:
    """Compare what a mount counted during a load with what LMCache stored and loaded in that time.

    Args:
        before: Reading before the load.
        after: Reading after the load.
        claimed: LMCache's account of the load.
        require: What the tier requires of its mount.
    """
    try:
        grown = mount_delta.delta(before.reading, after.reading)
    except RunError as error:
        idle = before.automounter if before.automounter == after.automounter else ""
        if idle and not mount_delta.changed_options(before.reading, after.reading):
            todo = "use it all the time, or set its timeout to 0"
            return AccountCheck((f"{error.where}: an automounter ({idle}) ended it while it was idle: {todo}",))
        return AccountCheck((f"{error.where} {error.what}: {error.todo}",))
    changed = _way(before.reading), _way(after.reading)
    if changed[0] != changed[1]:
        return AccountCheck((f"{after.reading.point} changed during the load: {changed[0]} -> {changed[1]}",))
    if options := mount_delta.changed_options(before.reading, after.reading):
        return AccountCheck((f"{after.reading.point} changed during the load: mounted with {options}",))
    return _bytes(grown, claimed) + _layouts(before, after, grown, claimed, require)


def _way(reading: Reading) -> str:
    return f"NFS {'.'.join(map(str, reading.version))} over {reading.proto or '?'}, {reading.layout or 'no pNFS'}"


def _bytes(grown: Delta, claimed: LmcacheAccount) -> AccountCheck:
    written, read = grown.bytes["server_write"], grown.bytes["server_read"]
    figures = {"mount_written_bytes": float(written), "mount_read_bytes": float(read)}
    check = AccountCheck(figures=figures)
    if written < claimed.stored * (1 - TOLERANCE):
        line = (
            f"LMCache says that it stored {claimed.stored / 1e6:.1f} MB, and the mount wrote {written / 1e6:.1f} to "
            "its server: the tier's folder is not on this mount, or a cache holds it back"
        )
        check += AccountCheck((line,))
    cached = 1 - read / claimed.loaded if claimed.loaded else 0.0
    if cached > TOLERANCE:
        line = (
            f"the page cache served {cached:.0%} of what LMCache loaded ({read / 1e6:.1f} of "
            f"{claimed.loaded / 1e6:.1f} MB came from the server): times of that share are those of this machine's RAM"
        )
        check += AccountCheck(findings=(line,), figures={"page_cache_share": cached})
    return check


def _layouts(
    before: MountReading, after: MountReading, grown: Delta, claimed: LmcacheAccount, require: Require
) -> AccountCheck:
    """Check whether reads and writes went by pNFS layouts or through the metadata server."""
    way = data_path.between(before.reading, after.reading)
    beside = {"WRITE": way.writes, "READ": way.reads}
    figures = {
        "layoutget": float(after.reading.operation("LAYOUTGET").ops),
        "pnfs_writes": float(grown.pnfs_writes),
        "pnfs_reads": float(grown.pnfs_reads),
        "other_writes": float(beside["WRITE"]),
        "other_reads": float(beside["READ"]),
    }
    check = AccountCheck(figures=figures)
    if way.local_bytes:
        line = (
            f"NFS LOCALIO: client and server are one machine, and {way.local_share:.1%} of all bytes "
            f"({way.local_bytes / 1e6:.1f} MB) were not sent: times of that share are those of its disk"
        )
        check += AccountCheck(findings=(line,), figures={"local_bytes": float(way.local_bytes)})
    if require not in {"pnfs", "pnfs-rdma"}:
        return check
    return check + _by_layout(before, after, grown, claimed, require, way=way)


def _by_layout(
    before: MountReading,
    after: MountReading,
    grown: Delta,
    claimed: LmcacheAccount,
    require: Require,
    *,
    way: DataPath,
) -> AccountCheck:
    """Check whether layouts were used as `require` asks."""
    check, beside = AccountCheck(), {"WRITE": way.writes, "READ": way.reads}
    if failed := _failed_data_server(grown, way, require):
        return AccountCheck((failed,))
    written, read = grown.bytes["server_write"], grown.bytes["server_read"]
    if claimed.stored and written:
        # Over minutes a server may take a layout back and give it anew.
        found = layouts.judge(_evidence(before, after), require, written + read, returns_are_usual=True)
        if found.status == "fail":
            return check + AccountCheck((f'require = "{require}": {found.found}; {found.todo}',))
        if found.status == "warn" and read == 0:
            return check  # the page cache served all reads: `_bytes` reports its share
        if found.status == "warn" and grown.pnfs_reads:
            return check + AccountCheck(findings=(f'require = "{require}": {found.found}',))
    if read and not grown.pnfs_reads:
        return check + AccountCheck((f'require = "{require}": {read / 1e6:.1f} MB were read, none of it by a layout',))
    for name, by_layout in (("WRITE", grown.pnfs_writes), ("READ", grown.pnfs_reads)):
        if beside[name] > TOLERANCE * (beside[name] + by_layout):
            whole = beside[name] + by_layout
            check += AccountCheck(findings=(f"{beside[name]} of {whole} {name}s went through the metadata server",))
    return check


def _failed_data_server(grown: Delta, way: DataPath, require: Require) -> str:
    """Return that the client reported a failed data server to the metadata server, "" where it did not."""
    count = grown.operation("LAYOUTERROR").ops
    if not count:
        return ""
    return (
        f'require = "{require}": a data server failed during the load: the client reported {count} errors of layouts '
        f"to the metadata server (LAYOUTERROR); {'; '.join(way.words) or 'nothing was sent another way'}"
    )


def _evidence(before: MountReading, after: MountReading) -> LayoutEvidence:
    return LayoutEvidence(
        before.reading, list(before.links), after.reading, after.links, after.connections, after.server
    )
