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
from pytest_kvcache.storage.requirement import BLOCK_LAYOUTS, Require

_TO_SERVER = (
    "see the client's kernel log (dmesg | grep -i nfs): a data server may be unreachable, or its device unknown here"
)

#: Share of writes and reads through the metadata server above which a layout is not in use.
_MOST = 0.5
_LOCAL = "bytes moved without a READ or WRITE: NFS LOCALIO, client and server are one machine and nothing is sent"


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


def judge(seen: LayoutEvidence, require: Require, moved: int, *, returns_are_usual: bool = False) -> Finding:
    """Say whether the I/O went as `require` (`pnfs` or `pnfs-rdma`) asks.

    Args:
        seen: What was counted around the I/O.
        require: What the tier requires.
        moved: Bytes that were written, and then read.
        returns_are_usual: Whether a layout that was given back is no sign of trouble.
    """
    if seen.before is None or seen.after is None:
        return Finding("fail", "not an NFS mount", "mount the export")
    grown = mountstats.delta(seen.before, seen.after)
    # LAYOUTGET is counted from the mount on: a layout of the whole file system may have been fetched before the I/O.
    layoutget, way = seen.after.operation("LAYOUTGET"), way_of(grown, seen.after.layout)
    text = (
        f"{seen.after.layout or 'no layout'}, LAYOUTGET {layoutget.ops}, "
        f"{grown.pnfs_writes} writes and {grown.pnfs_reads} reads by the layout"
    )
    trouble = [*way.words, *_refusals(grown, returns_are_usual)]
    if way.is_local:
        return Finding("fail", f"{text}; {_LOCAL}", "move the server to another machine: this one is its own server")
    if grown.pnfs_writes == 0:
        trouble = [f"all through the metadata server ({_metadata_server(grown, seen.after)})"]
    if grown.pnfs_writes == 0 or way.share > _MOST:
        return Finding("fail", f"{text}: {'; '.join(trouble)}", _TO_SERVER)
    found = _over_rdma(seen, text, moved) if require == "pnfs-rdma" else Finding("pass", text)
    if trouble and found.status != "fail":
        return Finding("warn", "; ".join([found.found, *trouble]), _TO_SERVER)
    if found.status == "pass" and grown.pnfs_reads == 0:
        return Finding("warn", f"{text}: reads were answered by the page cache, or the metadata server", _TO_SERVER)
    return found


@dataclass(frozen=True)
class Way:
    """Which way reads and writes took, as far as the mount's counters tell.

    The kernel counts what it *tries* by a layout (`pnfs_try_to_write_data`, `pnfs_try_to_read_data` in fs/nfs/pnfs.c).
    What fails is sent again to the metadata server, as READ and WRITE of the mount. With files and flexfiles layouts
    those to data servers are in the same counts, so what is beyond the tries went to the metadata server; block layouts
    move no data by NFS, so all of them did.

    Args:
        writes: WRITEs that the metadata server got.
        reads: READs that it got.
        tried_writes: Writes that were tried by a layout.
        tried_reads: Reads that were tried by a layout.
        errors: WRITEs and READs that were answered with an error, by whatever server.
        is_local: Whether bytes moved without a request: NFS LOCALIO (Linux 6.12, fs/nfs/localio.c) reads and writes the
            server's files directly where client and server are one machine.
    """

    writes: int
    reads: int
    tried_writes: int
    tried_reads: int
    errors: int
    is_local: bool

    @property
    def share(self) -> float:
        """Share (0 to 1) that went through the metadata server, of writes or of reads: the larger one."""
        pairs = ((self.writes, self.tried_writes), (self.reads, self.tried_reads))
        return max(beside / max(tried, beside, 1) for beside, tried in pairs)

    @property
    def words(self) -> list[str]:
        """What a person needs to know of it, nothing where all went by the layout."""
        found = []
        if self.writes or self.reads:
            found.append(
                f"{self.writes} WRITEs and {self.reads} READs went through the metadata server, {self.share:.1%} of "
                "what the layout was tried for"
            )
        if self.errors:
            found.append(f"{self.errors} WRITEs and READs failed")
        return found


def way_of(grown: Delta, layout: str) -> Way:
    """Return which way reads and writes took between two readings of a mount.

    Args:
        grown: What the mount counted.
        layout: Its layout driver.
    """
    write, read = grown.operation("WRITE"), grown.operation("READ")
    by_nfs = layout not in BLOCK_LAYOUTS
    read_bytes = grown.bytes.get("server_read", 0)
    moved = grown.bytes.get("server_write", 0) + read_bytes
    tried = grown.pnfs_writes or grown.pnfs_reads
    return Way(
        writes=max(0, write.ops - grown.pnfs_writes) if by_nfs else write.ops,
        reads=(max(0, read.ops - grown.pnfs_reads) if by_nfs else read.ops) if read_bytes else 0,
        tried_writes=grown.pnfs_writes,
        tried_reads=grown.pnfs_reads,
        errors=write.errors + read.errors,
        is_local=moved > 0 and not write.ops and not read.ops and (by_nfs or not tried),
    )


def _refusals(grown: Delta, returns_are_usual: bool) -> list[str]:
    """Return what says that a layout or a device was given up in the window.

    Errors of LAYOUTGET are none where layouts were used all the same: the protocol has a client ask again after a
    delay, while a layout is recalled, and where the server is to be tried later (RFC 8881, 18.43.3).
    """
    counted = (
        ("LAYOUTERROR", grown.operation("LAYOUTERROR").ops, "reports of errors to the server"),
        ("LAYOUTRETURN", 0 if returns_are_usual else grown.operation("LAYOUTRETURN").ops, "layouts given back"),
        ("GETDEVICEINFO", grown.operation("GETDEVICEINFO").errors, "devices that could not be named"),
    )
    return [f"{name} {count}: {words}" for name, count, words in counted if count]


def _metadata_server(grown: Delta, after: Reading) -> str:
    writes, devices = grown.operation("WRITE").ops, after.operation("GETDEVICEINFO")
    asked = grown.operation("LAYOUTGET")
    refused = max(0, asked.errors - grown.delays)
    return f"WRITE {writes}, GETDEVICEINFO {devices.ops} with {devices.errors} errors" + (
        f", LAYOUTGET with {refused} errors" if refused else ""
    )


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
    doubt = ""
    if carried is None:
        doubt = "they count nothing"
    elif carried.bytes < moved:
        if carried.known:
            text = f"{text}; they carried at most {carried.bytes} of {moved} bytes: data servers over TCP"
            return Finding("fail", text, todo)
        doubt = "a counter of theirs stands still or began anew"
    elif (others := _tcp_elsewhere(seen)) and any(link.layer == "InfiniBand" for link in active):
        doubt = f"RPC connections over TCP to {', '.join(others)}: IPoIB moves the same counters"
    if carried is None or doubt:
        return Finding("warn", f"{text}; {doubt}, so that the data's way is not proved", todo)
    return Finding("pass", f"{text}; {carried.bytes >> 20} MiB over them")


def _tcp_elsewhere(seen: LayoutEvidence) -> list[str]:
    """Return the addresses of TCP connections of the kernel to other hosts than the mount's server."""
    own = seen.after.options.get("addr", "") if seen.after else ""
    return sorted({_host(address) for kind, address in seen.connections if kind == "tcp"} - {_host(own)})


def _host(address: str) -> str:
    """Return an address without its port and brackets: `10.0.0.1:2049`, `[fe80::1]:2049` and `fe80::1` have none."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _reading(point: Path) -> Reading | None:
    path = mounts.PROC / "mountstats"
    return mountstats.at(mounts.read_table(path), point) if path.exists() else None
