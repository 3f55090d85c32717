"""What an NFS mount says of itself in /proc/self/mountstats: version, transport, pNFS layout, counters.

The format is the kernel's (`fs/nfs/super.c: nfs_show_stats`, `net/sunrpc/stats.c`), statvers 1.0 and 1.1. Counters
count from the mount on and start again with a remount, so that only the difference of two readings says anything.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pytest_kvcache.storage.mount_options import nfs_version, parse_options, whole
from pytest_kvcache.storage.transports import Transport

# Names may hold whatever is no space and no line end to the kernel: NBSP, a carriage return, any byte.
_DEVICE = re.compile(
    r"device (?P<source>.*) mounted on (?P<point>[^ \t\n]+) with fstype (?P<fstype>[^ \t\n]+)(?: [^\n]*)?", re.DOTALL
)
_LAYOUT = re.compile(r"\bpnfs=(?P<layout>not configured|[^,\n]+)")
_OPERATION = re.compile(r"[ \t]*(?P<name>[A-Z][A-Z0-9_]*):((?: [0-9]+)+)[ \t]*")
_NUMBER = re.compile("-?[0-9]{1,20}")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")

#: Positions of the last three of the 27 event counters (`enum nfs_stat_eventcounters` of linux/nfs_iostat.h); older
#: kernels have fewer. Delays are answers NFS4ERR_DELAY and NFS3ERR_JUKEBOX: come again later.
_DELAY, _PNFS_READ, _PNFS_WRITE = 24, 25, 26
COUNTED_BYTES = (
    "normal_read", "normal_write", "direct_read", "direct_write", "server_read", "server_write", "pages_read",
    "pages_written",
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """What one NFS operation has cost since the mount.

    Args:
        ops: Number of requests.
        transmissions: How often requests were sent.
        timeouts: How many requests were sent again because no answer came (major timeouts).
        bytes_sent: Bytes sent, with all headers.
        bytes_received: Bytes received, with all headers.
        queue_ms: Summed time before sending.
        rtt_ms: Summed time from sending to the answer.
        execute_ms: Summed time from the request to its end.
        errors: Answers with an error status; 0 on kernels before 5.3, which do not count them.
    """

    ops: int = 0
    transmissions: int = 0
    timeouts: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    queue_ms: int = 0
    rtt_ms: int = 0
    execute_ms: int = 0
    errors: int = 0


@dataclass(frozen=True)
class Reading:
    """One NFS mount at one time.

    Args:
        source: `server:/export`.
        point: Folder that it is mounted on.
        fstype: `nfs` (v3 and older) or `nfs4`.
        options: Mount options by name; "" for those without a value.
        age_s: Time since the mount.
        layout: pNFS layout driver that was negotiated (`LAYOUT_FLEX_FILES`), "" for none. It says nothing about use.
        flavor: Security flavour: `sys`, `krb5`, …
        events: The kernel's event counters.
        bytes: Counts by name (`server_read`: from the server; `normal_read`: by programs, from the page cache or not;
            `direct_read`: by programs with O_DIRECT), in bytes; only `pages_*` count pages.
        transports: Connections to the mount's server: one, or as many as `nconnect` asked for.
        operations: Counters by NFS operation (`READ`, `LAYOUTGET`).
        neighbours: Other mounts that send by the same transports, whose requests these count too.
        read_at_s: Time of the reading (s, `time.monotonic`), None where it is not known.
    """

    source: str
    point: Path
    fstype: str
    options: Mapping[str, str]
    age_s: int = 0
    layout: str = ""
    flavor: str = ""
    events: tuple[int, ...] = ()
    bytes: Mapping[str, int] = field(default_factory=dict)
    transports: tuple[Transport, ...] = ()
    operations: Mapping[str, Operation] = field(default_factory=dict)
    neighbours: tuple[Reading, ...] = field(default=(), compare=False, repr=False)
    read_at_s: float | None = field(default=None, compare=False, repr=False)

    @property
    def version(self) -> tuple[int, int]:
        """NFS version, for instance (4, 2); (0, 0) where the options do not give it."""
        return nfs_version(self.options)

    @property
    def proto(self) -> str:
        """Transport to the mount's server: `rdma`, `tcp`, …; "" where the options do not give it."""
        return self.options.get("proto", "")

    @property
    def nconnect(self) -> int:
        """Number of connections that the mount asked for."""
        return whole(self.options.get("nconnect", ""), 1)

    @property
    def rsize(self) -> int:
        """Largest READ (bytes)."""
        return whole(self.options.get("rsize", ""))

    @property
    def wsize(self) -> int:
        """Largest WRITE (bytes)."""
        return whole(self.options.get("wsize", ""))

    @property
    def pnfs_reads(self) -> int:
        """READs that were tried by a layout: to data servers or block devices (`pnfs_try_to_read_data`)."""
        return self._event(_PNFS_READ)

    @property
    def pnfs_writes(self) -> int:
        """WRITEs that were tried by a layout: to data servers or block devices (`pnfs_try_to_write_data`)."""
        return self._event(_PNFS_WRITE)

    @property
    def delays(self) -> int:
        """Answers that asked to come again later, which is no error."""
        return self._event(_DELAY)

    @property
    def is_rdma(self) -> bool:
        """Whether the transport to the mount's server is RDMA, over IPv4 or IPv6."""
        return self.proto in {"rdma", "rdma6"}

    def operation(self, name: str) -> Operation:
        """Return the counters of an operation by its exact name, zeros where the mount does not know it."""
        return self.operations.get(name, Operation())

    def describe(self) -> str:
        """Return version, transport, layout, connections, transfer sizes and security in one line."""
        major, minor = self.version
        version = f"v{major}.{minor}" if major >= 4 else f"v{major}"
        parts = [f"NFS {version} over {self.proto or '?'}", self.layout or "no pNFS"]
        parts += [f"nconnect {self.nconnect}", f"rsize {self.rsize >> 10} KiB, wsize {self.wsize >> 10} KiB"]
        return ", ".join([*parts, f"sec={self.flavor or '?'}"])

    def _event(self, index: int) -> int:
        return self.events[index] if index < len(self.events) else 0


def parse(text: str) -> list[Reading]:
    """Return the NFS mounts of a /proc/PID/mountstats, in its order; other file systems are left out."""
    found: list[Reading] = []
    block: list[str] = []
    for line in [*text.split("\n"), "device end mounted on / with fstype none"]:
        if line.startswith(("device ", "no device ")):
            head = _DEVICE.fullmatch(block[0]) if block else None
            if head and head["fstype"] in {"nfs", "nfs4"}:
                found.append(_block(head, block[1:]))
            block = []
        block.append(line)
    return found


class Listed(NamedTuple):
    """What mountinfo alone has of an NFS mount.

    Args:
        point: Folder that it is mounted on.
        device: Number of the file system (`0:50`), which all places where it is mounted have in common.
        server: Address of its server, "" where the table does not give it.
    """

    point: Path
    device: str
    server: str


def at(text: str, point: Path, position: int = -1, listed: Iterable[Listed] = ()) -> Reading | None:
    """Return an NFS mount with its neighbours, None where there is none.

    Args:
        text: A /proc/PID/mountstats.
        point: Folder that it is mounted on.
        position: Which one it is, where several lie upon each other: the last one by default.
        listed: All NFS mounts of mountinfo, in its order.
    """
    mounts = _known(parse(text), list(listed))
    here = [(m, known) for m, known in mounts if m.point == point]
    if not here:
        return None
    found, own = here[position] if -len(here) <= position < len(here) else here[-1]
    # A file system has one set of counters, however many places it is mounted on.
    others = {known.device: m for m, known in reversed(mounts) if _share_transports(found, own, m, known)}
    return replace(found, neighbours=tuple(others.values()))


def _known(mounts: list[Reading], listed: list[Listed]) -> list[tuple[Reading, Listed]]:
    """Return each mount with what mountinfo has of it; without that, equal counters make one file system."""
    found = []
    for mount in mounts:
        known = next((each for each in listed if each.point == mount.point), None)
        if known is None:
            known = Listed(mount.point, repr((mount.bytes, mount.events)), "")
        else:
            listed.remove(known)
        found.append((mount, known))
    return found


def _share_transports(one: Reading, own: Listed, other: Reading, known: Listed) -> bool:
    """Return whether another mount sends by the same transports, and is no second place of the same file system.

    Mounts of one server share its connections (`nfs_match_client`), which each of them shows. The kernel prints one
    after the other, so that a connection at work may show a few more requests at the second.
    """
    if own.device == known.device or (one.version, one.proto) != (other.version, other.proto):
        return False
    # A server may have been mounted by several of its names: its address decides where it is known.
    names = (own.server, known.server) if own.server and known.server else (_server(one), _server(other))
    if names[0] != names[1] or len(one.transports) != len(other.transports):
        return False
    pairs = zip(one.transports, other.transports, strict=True)
    return bool(one.transports) and all(a.is_shown_again_by(b) for a, b in pairs)


def _server(reading: Reading) -> str:
    return reading.source.rpartition(":/")[0]


def unescape(text: str) -> str:
    r"""Return a field of the kernel's tables without its octal escapes: a space is written `\040`."""
    return os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m.group(1), 8)]), os.fsencode(text)))


def _block(head: re.Match[str], lines: list[str]) -> Reading:
    fields: dict[str, str] = {}
    transports, operations = [], {}
    for line in lines:
        operation = _OPERATION.fullmatch(line)
        key, _, value = line.strip(" \t").partition(":")
        if operation:
            operations[operation["name"]] = Operation(*(int(x) for x in operation.group(2).split()[:9]))
        elif key == "xprt":
            kind, _, numbers = value.strip(" \t").partition(" ")
            transports.append(Transport(kind, _numbers(numbers)))
        else:
            fields[key] = value.strip(" \t")
    layout = _LAYOUT.search(fields.get("nfsv4", ""))
    driver = layout["layout"].strip() if layout else ""
    options = parse_options(fields.get("opts", ""))
    return Reading(
        source=unescape(head["source"]),
        point=Path(unescape(head["point"])),
        fstype=head["fstype"],
        options=options,
        age_s=whole(fields.get("age", "")),
        layout="" if driver == "not configured" else driver,
        flavor=options.get("sec", ""),
        events=_numbers(fields.get("events", "")),
        bytes=dict(zip(COUNTED_BYTES, _numbers(fields.get("bytes", "")), strict=False)),
        transports=tuple(transports),
        operations=operations,
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers up to the first word that is none: what a newer kernel may add, nobody knows."""
    return tuple(map(int, itertools.takewhile(_NUMBER.fullmatch, text.split())))
