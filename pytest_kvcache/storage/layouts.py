"""Whether pNFS layouts are used, and not only negotiated: what the kernel counted while a file was written and read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.check import Finding
from pytest_kvcache.storage import mounts, mountstats, rdma
from pytest_kvcache.storage.mountstats import Delta, Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require

_TO_SERVER = (
    "see the client's kernel log (dmesg | grep -i nfs): a data server may be unreachable, or its device unknown here"
)


@dataclass
class LayoutEvidence:
    """What was counted around some I/O.

    Args:
        before: The mount's counters before the I/O, None where it is no NFS mount.
        after: The mount's counters after the I/O.
        links_before: RDMA links with their counters before the I/O.
        links_after: RDMA links with their counters after the I/O.
        connections: Kind and address of all RPC connections after the I/O.
    """

    before: Reading | None
    links_before: list[Link]
    after: Reading | None = None
    links_after: tuple[Link, ...] = ()
    connections: tuple[tuple[str, str], ...] = ()


@contextmanager
def evidence(point: Path) -> Iterator[LayoutEvidence]:
    """Yield what is counted of the mount at `point` around the body; it is complete when the body has ended."""
    seen = LayoutEvidence(before=_reading(point), links_before=rdma.links(rdma.DEVICES))
    yield seen
    seen.after = _reading(point)
    seen.links_after = tuple(rdma.links(rdma.DEVICES))
    seen.connections = tuple(rdma.rpc_connections(rdma.SWITCHES))


def judge(seen: LayoutEvidence, require: Require, moved: int) -> Finding:
    """Say whether the I/O went as `require` (`pnfs` or `pnfs-rdma`) asks.

    Args:
        seen: What was counted around the I/O.
        require: What the tier requires.
        moved: Bytes that were written, and then read.
    """
    if seen.before is None or seen.after is None:
        return Finding("fail", "not an NFS mount", "mount the export")
    grown = mountstats.delta(seen.before, seen.after)
    # LAYOUTGET is counted from the mount on: a layout of the whole file system may have been fetched before the I/O.
    layoutget = seen.after.operation("LAYOUTGET")
    refused = grown.operation("LAYOUTERROR").ops + grown.operation("GETDEVICEINFO").errors + layoutget.errors
    text = (
        f"{seen.after.layout or 'no layout'}, LAYOUTGET {layoutget.ops}, "
        f"{grown.pnfs_writes} writes and {grown.pnfs_reads} reads by the layout"
    )
    if grown.pnfs_writes == 0:
        text += f": all through the metadata server ({_metadata_server(grown, seen.after)})"
        return Finding("fail", text, _TO_SERVER)
    if refused:
        return Finding("fail", f"{text}; {refused} errors of layouts or devices", _TO_SERVER)
    found = _over_rdma(seen, text, moved) if require == "pnfs-rdma" else Finding("pass", text)
    if found.status == "pass" and grown.pnfs_reads == 0:
        return Finding("warn", f"{text}: reads were answered by the page cache, or the metadata server", _TO_SERVER)
    return found


def _metadata_server(grown: Delta, after: Reading) -> str:
    writes, devices = grown.operation("WRITE").ops, after.operation("GETDEVICEINFO")
    return f"WRITE {writes}, GETDEVICEINFO {devices.ops} with {devices.errors} errors"


def _over_rdma(seen: LayoutEvidence, text: str, moved: int) -> Finding:
    """Judge the path that the data took; mountstats has only the transport to the metadata server."""
    active = [link for link in seen.links_after if link.is_active]
    shown = "; ".join(link.describe() for link in active or seen.links_after) or "none"
    text = f"{text}; RDMA links: {shown}"
    todo = "let the server name its data servers with an RDMA address (netid rdma); rdma link and rdma res show qp"
    if seen.links_after and not active:
        return Finding("fail", f"{text}: none is active", "bring the link up (rdma link, ibstat)")
    if seen.connections and not any(kind == "rdma" for kind, _ in seen.connections):
        return Finding("fail", f"{text}: no RPC connection of this kernel is over RDMA", todo)
    carried = rdma.carried(seen.links_before, seen.links_after)
    if carried is None:
        return Finding("warn", f"{text}; they count nothing, so that the data's way is not proved", todo)
    if carried < moved:
        return Finding("fail", f"{text}; they carried at most {carried} of {moved} bytes: data servers over TCP", todo)
    return Finding("pass", f"{text}; {carried >> 20} MiB over them")


def _reading(point: Path) -> Reading | None:
    path = mounts.PROC / "mountstats"
    return mountstats.at(path.read_text(encoding="utf-8"), point) if path.exists() else None
