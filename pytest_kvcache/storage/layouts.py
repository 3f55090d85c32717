"""Whether pNFS layouts are used, and not only negotiated: what the kernel counted while a file was written and read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.check import Finding
from pytest_kvcache.storage import data_path, mount_delta, rdma
from pytest_kvcache.storage.mount_delta import Delta
from pytest_kvcache.storage.mounts import mount_of
from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require

_TO_SERVER = (
    "see the client's kernel log (dmesg | grep -i nfs): a data server may be unreachable, or its device unknown here"
)
_OWN_SERVER = "move the server to another machine: this one is its own server"
_TO_RDMA = "let the server name its data servers with an RDMA address (netid rdma); rdma link and rdma res show qp"

#: Share of writes and reads through the metadata server, or without a network, from which a layout is not in use.
_MOST = 0.5
#: Time (s) after which counters are read again, where requests seem to be under way.
_AGAIN_S = 0.2


@dataclass
class LayoutEvidence:
    """What was counted around some I/O.

    Args:
        before: The mount's counters before the I/O, None where it is no NFS mount.
        after: The mount's counters after the I/O.
        links_before: RDMA links with their counters before the I/O.
        links_after: RDMA links with their counters after the I/O.
        connections: Kind and address of all RPC connections after the I/O.
        server: Address of the metadata server, "" where it is not known.
    """

    before: Reading | None
    links_before: list[Link]
    after: Reading | None = None
    links_after: tuple[Link, ...] = ()
    connections: tuple[tuple[str, str], ...] = ()
    server: str = ""


@contextmanager
def evidence(folder: Path) -> Iterator[LayoutEvidence]:
    """Yield what is counted of the mount that holds `folder` around the body; it is complete when the body has ended.

    Raises:
        OSError: The folder cannot be opened.
    """
    mount = mount_of(folder)
    seen = LayoutEvidence(before=mount.nfs, links_before=rdma.links(rdma.DEVICES), server=mount.server)
    yield seen
    seen.after = mount_of(folder).nfs
    if seen.before and seen.after and data_path.between(seen.before, seen.after).words:
        # A request is counted by its transport when it is sent, and by its operation when it is answered.
        time.sleep(_AGAIN_S)
        seen.after = mount_of(folder).nfs
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
    grown = mount_delta.delta(seen.before, seen.after)
    way = data_path.between(seen.before, seen.after)
    # LAYOUTGET is counted from the mount on: a layout of the whole file system may have been fetched before the I/O.
    text = (
        f"{seen.after.layout or 'no layout'}, LAYOUTGET {seen.after.operation('LAYOUTGET').ops}, "
        f"{grown.pnfs_writes} writes and {grown.pnfs_reads} reads by the layout"
    )
    trouble = [*way.words, *_refusals(grown, returns_are_usual)]
    trouble += _without_layout(grown) if way.share else []
    if way.local_share > _MOST:
        return Finding("fail", f"{text}: {'; '.join(trouble)}", _OWN_SERVER)
    if grown.pnfs_writes == 0:
        trouble = [f"all through the metadata server ({_metadata_server(grown, seen.after)})"]
    if grown.pnfs_writes == 0 or way.share >= _MOST:
        return Finding("fail", f"{text}: {'; '.join(trouble)}", _TO_SERVER)
    found = _over_rdma(seen, text, moved) if require == "pnfs-rdma" else Finding("pass", text)
    if trouble and found.status != "fail":
        return Finding("warn", "; ".join([found.found, *trouble]), _OWN_SERVER if way.local_bytes else _TO_SERVER)
    if found.status == "pass" and grown.pnfs_reads == 0:
        return Finding("warn", f"{text}: reads were answered by the page cache, or the metadata server", _TO_SERVER)
    return found


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
    text = f"WRITE {writes}, GETDEVICEINFO {devices.ops} with {devices.errors} errors"
    return ", ".join([text, *_without_layout(grown)])


def _without_layout(grown: Delta) -> list[str]:
    """Return how often the server gave no layout in the window, but for the answers to come again later.

    To wait for a recall, or to try later, are asked for by the protocol too, and are counted like errors.
    """
    count = max(0, grown.operation("LAYOUTGET").errors - grown.delays)
    return [f"LAYOUTGET gave no layout {count} times (errors, recalls, or to be tried later)"] if count else []


def _over_rdma(seen: LayoutEvidence, text: str, moved: int) -> Finding:
    """Judge the path that the data took; mountstats has only the transport to the metadata server."""
    active = [link for link in seen.links_after if link.is_active]
    shown = "; ".join(link.describe() for link in active or seen.links_after) or "none"
    text = f"{text}; RDMA links: {shown}"
    carried = rdma.carried(seen.links_before, seen.links_after)
    if seen.links_after and not active and (carried is None or carried.known):
        return Finding("fail", f"{text}: none is active", "bring the link up (rdma link, ibstat)")
    if seen.connections and not any(kind == "rdma" for kind, _ in seen.connections):
        return Finding("fail", f"{text}: no RPC connection of this kernel is over RDMA", _TO_RDMA)
    if carried is None:
        doubt = "they count nothing"
    elif not carried.known:
        doubt = "one of them appeared, went or does not count, or a counter stands still or began anew"
    elif carried.bytes < moved:
        text = f"{text}; they carried at most {carried.bytes} of {moved} bytes: data servers over TCP"
        return Finding("fail", text, _TO_RDMA)
    else:
        doubt = _by_ipoib(seen, active)
    if carried is None or doubt:
        return Finding("warn", f"{text}; {doubt}, so that the data's way is not proved", _TO_RDMA)
    return Finding("pass", f"{text}; {carried.bytes >> 20} MiB over them")


def _by_ipoib(seen: LayoutEvidence, active: Sequence[Link]) -> str:
    """Return why data may have gone by TCP over InfiniBand, which moves the same counters; "" where it cannot have."""
    if not any(link.layer == "InfiniBand" for link in active):
        return ""
    if not seen.connections:
        return "this kernel does not list RPC connections, and TCP over IPoIB moves the same counters"
    own = seen.server or (seen.after.options.get("addr", "") if seen.after else "")
    others = sorted({_host(address) for kind, address in seen.connections if kind == "tcp"} - {_host(own)})
    return f"RPC connections over TCP to {', '.join(others)}: IPoIB moves the same counters" if others else ""


def _host(address: str) -> str:
    """Return an address without port, brackets and scope (`10.0.0.1:2049`, `[fe80::1]:2049`, `fe80::1%ib0`)."""
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    return address.partition("%")[0].lower()
