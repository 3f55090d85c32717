"""How much of a mount's reads and writes went through its metadata server, and how much beside the network.

Three counters of a mount say something of it, none of them all:

- `events:` counts what was *tried* by a layout (`pnfs_try_to_write_data`, `pnfs_try_to_read_data` in fs/nfs/pnfs.c).
  What cannot be tried, or fails, is sent to the metadata server.
- The rows of READ and WRITE count requests to whatever server: with files and flexfiles layouts those to data servers
  too. So a try that is given up before it is sent and comes to the metadata server is one try and one WRITE, exactly
  like one that went to a data server. Block layouts move no data by NFS, so that each READ and WRITE went to the
  metadata server.
- The `xprt:` lines count what the metadata server alone was sent. All operations but READ, WRITE and COMMIT go there,
  and their rows have their transmissions; what was sent beyond them were reads and writes. An RDMA transport also
  counts the memory that the server read (for WRITEs) and wrote (for READs).

Other mounts of the server send by the same transports; their requests are taken off (`Reading.neighbours`). Those of
other mount namespaces cannot be seen, and would be taken for reads and writes of this mount.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage import mount_delta
from pytest_kvcache.storage.mount_delta import Delta
from pytest_kvcache.storage.mountstats import Operation, Reading
from pytest_kvcache.storage.requirement import BLOCK_LAYOUTS

#: Layouts by which a client may be told to send COMMITs to the metadata server (RFC 8881, NFL4_UFLG_COMMIT_THRU_MDS).
_FILES_LAYOUT = "LAYOUT_NFSV4_1_FILES"
#: Operations that may go to a data server.
_OF_DATA = frozenset({"READ", "READ_PLUS", "WRITE", "COMMIT"})
#: Operations of the client as a whole, which the rows of every mount of a server contain.
OF_CLIENT = frozenset({
    "NULL", "SETCLIENTID", "SETCLIENTID_CONFIRM", "RENEW", "EXCHANGE_ID", "CREATE_SESSION", "DESTROY_SESSION",
    "DESTROY_CLIENTID", "SEQUENCE", "GET_LEASE_TIME", "RECLAIM_COMPLETE", "SECINFO_NO_NAME",
    "BIND_CONN_TO_SESSION",
})  # fmt: skip
#: Smallest share of requests that is told: answers to the server's callbacks and requests under way are counted too.
_NOISE = 0.0005
#: Smallest share of requests without data that is told: they are of other mounts, or were not answered yet.
_MANY = 0.05
#: Largest data (bytes) that may be sent within an RDMA message (`rdma_max_inline_write`), and so moves no chunk.
_INLINE_BYTES = 64 << 10


@dataclass(frozen=True)
class DataPath:
    """Which way reads and writes took between two readings of a mount.

    Args:
        writes: WRITEs to the metadata server.
        reads: READs (and READ_PLUS) to the metadata server.
        either: Further requests to the metadata server that were READs or WRITEs; only an RDMA transport tells which.
        other: Requests to the metadata server that no operation accounts for and that moved no data by RDMA.
        bytes: Bytes of these reads and writes, by the mean size of a request where nothing counts them.
        request_share: Share (0 to 1) of requests that went to the metadata server: of all, of writes or of reads, the
            largest one.
        byte_share: The same share of bytes.
        errors: WRITEs and READs that were answered with an error, by whatever server, but for "come again later".
        local_bytes: Bytes that moved without a request. NFS LOCALIO (Linux 6.12, fs/nfs/localio.c) reads and writes the
            server's files directly where client and server are one machine.
        local_share: Their share (0 to 1) of all bytes.
        is_measured: Whether the transports say what was sent to the metadata server.
    """

    writes: int = 0
    reads: int = 0
    either: int = 0
    other: int = 0
    bytes: int = 0
    request_share: float = 0.0
    byte_share: float = 0.0
    errors: int = 0
    local_bytes: int = 0
    local_share: float = 0.0
    is_measured: bool = True

    @property
    def share(self) -> float:
        """Share (0 to 1) that went through the metadata server, of requests or of bytes: the larger one."""
        return max(self.request_share, self.byte_share)

    @property
    def words(self) -> list[str]:
        """What a person needs to know of it, nothing where all went by the layout."""
        found = []
        if self.writes or self.reads or self.either:
            counts = f"{self.writes} WRITEs and {self.reads} READs"
            if self.either:
                both = f"{self.either} WRITEs or READs"
                counts = f"{counts}, and {both}" if self.writes or self.reads else both
            found.append(
                f"{counts} went through the metadata server, {self.share:.1%} of what the layout was tried for "
                f"(about {self.bytes / 1e6:.1f} MB)"
            )
        if self.other:
            found.append(f"the metadata server was sent {self.other} requests that no operation accounts for")
        if self.errors:
            found.append(f"{self.errors} WRITEs and READs failed")
        if self.local_bytes:
            found.append(
                f"NFS LOCALIO: {self.local_bytes / 1e6:.1f} MB, {self.local_share:.1%} of all, moved without a READ or "
                "WRITE, since client and server are one machine"
            )
        if not self.is_measured:
            found.append("the mount's transports do not tell what the metadata server was sent (xprt: in mountstats)")
        return found


def between(before: Reading, after: Reading) -> DataPath:
    """Return which way reads and writes took between two readings of one mount.

    Raises:
        RunError: The readings are of two mounts (`mount_delta.delta`).
    """
    grown = mount_delta.delta(before, after)
    written, read = _moved(grown, "WRITE"), _moved(grown, "READ", "READ_PLUS")
    by_nfs = after.layout not in BLOCK_LAYOUTS
    tried = grown.pnfs_writes, grown.pnfs_reads
    writes, reads = _beside(grown, tried if by_nfs else (0, 0), written.ops, read.ops)
    sent = _Sent(0, 0, 0, 0)
    is_measured = True
    if by_nfs and any(tried):
        measured = _sent(before, after, grown)
        is_measured, sent = measured is not None, measured or sent
    if sent.requests < _NOISE * (written.ops + read.ops):
        sent = _Sent(0, 0, 0, 0)
    reads = max(reads, sent.reads)
    writes = max(writes, sent.writes)
    left = max(0, sent.requests - writes - reads)
    # Without chunks, or with data that fits into a message, nothing tells WRITEs from READs.
    either, other = (left, 0) if sent.read_bytes is None or _may_be_inline(grown, written, read) else (0, left)
    if either and not (written.ops and read.ops):
        writes, reads, either = (writes + either, reads, 0) if written.ops else (writes, reads + either, 0)
    other = other if other >= _MANY * (written.ops + read.ops) else 0
    write_bytes, read_bytes = grown.bytes.get("server_write", 0), grown.bytes.get("server_read", 0)
    moved = write_bytes + read_bytes
    by_server = (
        _part(writes, max(tried[0], written.ops), write_bytes),
        _part(reads, max(tried[1], read.ops), read_bytes),
    )
    if sent.read_bytes is not None and sent.reads == reads:
        by_server = by_server[0], min(read_bytes, sent.read_bytes)
    passed = sum(by_server) + _part(either, written.ops + read.ops, moved)
    local = _local(after, grown, tried, written, read)
    return DataPath(
        writes=writes,
        reads=reads,
        either=either,
        other=other,
        bytes=passed,
        request_share=max(
            _share(writes, tried[0]),
            _share(reads, tried[1]),
            _share(writes + reads + either, max(sum(tried), written.ops + read.ops)),
        ),
        byte_share=max(_share(passed, moved), *map(_share, by_server, (write_bytes, read_bytes))) if passed else 0.0,
        errors=_errors(grown, written.errors + read.errors),
        local_bytes=local,
        local_share=_share(local, moved),
        is_measured=is_measured,
    )


@dataclass(frozen=True)
class _Sent:
    """What the metadata server was sent beyond the operations that always go there.

    Args:
        requests: Number of requests.
        writes: Those of them that were WRITEs, as far as it is told.
        reads: Those of them that were READs, as far as it is told.
        read_bytes: Bytes of its READs; None for transports that do not count them.
    """

    requests: int
    writes: int
    reads: int
    read_bytes: int | None


def _sent(before: Reading, after: Reading, grown: Delta) -> _Sent | None:
    """Return what the transports tell; None where they tell nothing, or changed."""
    sends = _grown([t.sends for t in before.transports], [t.sends for t in after.transports])
    if sends is None or [t.kind for t in before.transports] != [t.kind for t in after.transports]:
        return None
    rows = [_not_of_data(grown.operations), *_of_neighbours(before, after)]
    known = [operation for row in rows for operation in row.values()]
    written, read = _moved(grown, "WRITE"), _moved(grown, "READ", "READ_PLUS")
    requests = sends - sum(operation.transmissions for operation in known)
    if after.layout == _FILES_LAYOUT:
        requests -= grown.operation("COMMIT").transmissions
    requests = max(0, min(requests, written.ops + read.ops))
    if not all(t.kind == "rdma" for t in after.transports):
        return _Sent(requests, 0, 0, None)
    answers = sum(t.reply_bytes for t in after.transports) - sum(t.reply_bytes for t in before.transports)
    read_bytes = max(0, answers - sum(operation.bytes_received for operation in known))
    size = grown.bytes.get("server_read", 0) / read.ops if read.ops else 0.0
    reads = min(requests, read.ops, round(read_bytes / size)) if size else 0
    chunks = sum(t.read_chunks for t in after.transports) - sum(t.read_chunks for t in before.transports)
    return _Sent(requests, max(0, min(requests - reads, written.ops, chunks)), reads, read_bytes)


def _of_neighbours(before: Reading, after: Reading) -> list[dict[str, Operation]]:
    """Return what other mounts sent by the same transports; of their data only what cannot have gone elsewhere."""
    earlier = {(m.source, m.point): m for m in before.neighbours}
    found = []
    for mount in after.neighbours:
        first = earlier.get((mount.source, mount.point))
        if first is None:
            continue
        try:
            grown = mount_delta.delta(first, mount).operations
        except RunError:
            continue
        own = _not_of_data(grown) if mount.layout else grown
        found.append({name: operation for name, operation in own.items() if name not in OF_CLIENT})
    return found


def _not_of_data(operations: Mapping[str, Operation]) -> dict[str, Operation]:
    return {name: operation for name, operation in operations.items() if name not in _OF_DATA}


def _grown(before: list[int | None], after: list[int | None]) -> int | None:
    """Return by how much counters grew in sum; None where one is not told, is new, is gone or began anew."""
    pairs = list(zip(before, after, strict=False))
    if not pairs or len(before) != len(after):
        return None
    grown = [new - old for old, new in pairs if old is not None and new is not None and new >= old]
    return sum(grown) if len(grown) == len(pairs) else None


def _beside(grown: Delta, tried: tuple[int, int], written: int, read: int) -> tuple[int, int]:
    """Return WRITEs and READs beyond the tries; a server that said "come again later" got one more than was tried."""
    writes, reads = max(0, written - tried[0]), max(0, read - tried[1])
    again = min(writes, grown.delays) if any(tried) else 0
    reads -= min(reads, max(0, grown.delays - again)) if any(tried) else 0
    return writes - again, reads if grown.bytes.get("server_read", 0) else 0


def _moved(grown: Delta, *names: str) -> Operation:
    rows = [grown.operation(name) for name in names]
    return Operation(*(sum(getattr(row, name) for row in rows) for name in Operation.__dataclass_fields__))


def _errors(grown: Delta, of_data: int) -> int:
    """Return errors of WRITEs and READs without the answers to come again later, which any operation may have got."""
    others = sum(operation.errors for operation in _not_of_data(grown.operations).values())
    return max(0, of_data - max(0, grown.delays - others))


def _may_be_inline(grown: Delta, written: Operation, read: Operation) -> bool:
    sizes = ((grown.bytes.get("server_write", 0), written.ops), (grown.bytes.get("server_read", 0), read.ops))
    return any(ops and size / ops < _INLINE_BYTES for size, ops in sizes)


def _local(after: Reading, grown: Delta, tried: tuple[int, int], written: Operation, read: Operation) -> int:
    """Return bytes that moved beyond what requests carried.

    A READ_PLUS may give a hole of any length in a few bytes, and is taken to carry what it may ask for. Bytes that a
    block layout moved, or may have moved, are not counted by requests.
    """
    plus = grown.operation("READ_PLUS").ops
    carried_read = max(read.bytes_received, plus * after.rsize) if read.bytes_received else read.ops * after.rsize
    carried_read += plus * after.rsize if plus and read.bytes_received else 0
    carried_write = written.bytes_sent or written.ops * after.wsize
    blocks = after.layout in BLOCK_LAYOUTS
    found = 0
    for name, carried, by_layout in (
        ("server_write", carried_write, tried[0]),
        ("server_read", carried_read, tried[1]),
    ):
        if not (blocks and by_layout):
            found += max(0, grown.bytes.get(name, 0) - carried)
    return found if _share(found, sum(grown.bytes.get(n, 0) for n in ("server_write", "server_read"))) > _NOISE else 0


def _part(count: int, of: int, size: int) -> int:
    return size * min(count, of) // of if of else 0


def _share(part: float, of: float) -> float:
    return part / max(part, of) if part else 0.0
