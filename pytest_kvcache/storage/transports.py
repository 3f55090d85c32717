"""Connections of an NFS mount to its own server, as the `xprt:` lines of mountstats show them."""

from __future__ import annotations

from dataclasses import dataclass

#: Position of the number of sent requests, by kind of transport (`xs_tcp_print_stats`, `xs_udp_print_stats`,
#: `xs_local_print_stats` of net/sunrpc/xprtsock.c, `xprt_rdma_print_stats` of net/sunrpc/xprtrdma/transport.c). No
#: kernel has moved them; newer ones add numbers at the end.
_SENDS = {"tcp": 5, "rdma": 5, "udp": 2, "local": 4}
#: Of an rdma transport: segments of read chunks (the server reads them: data of WRITEs), and bytes that the server put
#: into write and reply chunks (data of READs). `total_rdma_request` between them is only the room for such bytes.
_RDMA_READ_CHUNKS, _RDMA_REPLY = 10, 14
#: Requests that a busy connection may send while the kernel prints the table.
_AT_WORK = 64
#: Number of the first numbers that change with a connection only: local port, binds, connects.
_STEADY = 3


@dataclass(frozen=True)
class Transport:
    """One connection to the mount's own server; those to pNFS data servers are not listed in mountstats.

    Args:
        kind: `tcp`, `rdma`, `udp` or `local`.
        numbers: As the kernel prints them; their meaning depends on the kind.
    """

    kind: str
    numbers: tuple[int, ...]

    @property
    def sends(self) -> int | None:
        """Number of sent requests, with retransmissions and answers to the server's callbacks; None if not told."""
        index = _SENDS.get(self.kind)
        return self.numbers[index] if index is not None and index < len(self.numbers) else None

    @property
    def read_chunks(self) -> int:
        """Segments of memory that the server was to read by RDMA, at least one for each large WRITE; 0 for others."""
        return self._number(_RDMA_READ_CHUNKS) if self.kind == "rdma" else 0

    @property
    def reply_bytes(self) -> int:
        """Bytes that the server wrote by RDMA: data of READs, and other long answers; 0 for other kinds."""
        return self._number(_RDMA_REPLY) if self.kind == "rdma" else 0

    def is_shown_again_by(self, other: Transport) -> bool:
        """Return whether another mount's line in the same table may be this transport's, read a moment apart."""
        alike = self.kind == other.kind and self.numbers[:_STEADY] == other.numbers[:_STEADY]
        return alike and abs((self.sends or 0) - (other.sends or 0)) <= _AT_WORK

    def _number(self, index: int) -> int:
        return self.numbers[index] if index < len(self.numbers) else 0
