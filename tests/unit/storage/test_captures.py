"""What the doctor finds on each captured mount."""

from __future__ import annotations

import pytest

from pytest_kvcache.storage.requirement import LEVELS
from tests.unit.storage.captures import capture, names, table

#: Findings for `nfs4.1`, `pnfs` and `pnfs-rdma`, and what the last one says.
EXPECTED = {
    "plain-v3-rdma": ("fail", "fail", "fail", "older than NFSv4.1"),
    "plain-v4.0-tcp": ("fail", "fail", "fail", "older than NFSv4.1"),
    "plain-v4.2-tcp": ("pass", "fail", "fail", "client and server have agreed on no pNFS layout"),
    "plain-rdma-quiet": ("pass", "fail", "fail", "client and server have agreed on no pNFS layout"),
    "pnfs-block-rdma-quiet": ("pass", "pass", "fail", "data goes to block devices"),
    "pnfs-block-rdma-tcg": ("pass", "pass", "fail", "data goes to block devices"),
    "pnfs-scsi-fallback-rdma": ("pass", "fail", "fail", "data goes to block devices"),
    "pnfs-flexfiles-tcp-v41": ("pass", "pass", "fail", "not over RDMA"),
    "pnfs-flexfiles-rdma": (
        "pass",
        "pass",
        "pass",
        "400 writes and 400 reads by the layout; RDMA links: rxe0/1 ACTIVE",
    ),
    "pnfs-flexfiles-rdma-tcg": ("pass", "pass", "pass", "200 writes and 200 reads by the layout; RDMA links: rxe0/1"),
    # Its link was not captured.
    "direct-io-flexfiles-rdma": ("pass", "pass", "warn", "count nothing, so that the data's way is not proved"),
}
#: WRITEs and READs that went to the metadata server, for mounts with a layout.
TO_METADATA_SERVER = {"pnfs-scsi-fallback-rdma": (200, 400)}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_finding_of_each_captured_mount(name: str) -> None:
    """Each requirement is met, or not, as it is known from how the mount was made."""
    found = capture(name)
    assert found is not None
    *statuses, words = EXPECTED[name]
    assert [found.found(level)[1].status for level in LEVELS] == ["pass", *statuses]
    assert words in found.found("pnfs-rdma")[1].found


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_way_of_each_captured_mounts_data(name: str) -> None:
    """The transports' counters account for every request: of I/O by layouts the metadata server was sent none."""
    found = capture(name)
    assert found is not None
    path = found.path
    own = found.after.operation("WRITE").ops, found.after.operation("READ").ops
    expected = TO_METADATA_SERVER.get(name, (0, 0) if found.after.layout else own)
    assert (path.writes, path.reads, path.either, path.other) == (*expected, 0, 0)
    assert (path.local_bytes, path.errors, path.is_measured) == (0, 0, True)


def test_the_table_has_every_capture() -> None:
    """The table that can be printed has a line for each capture, the one without NFS among them."""
    lines = table()
    assert [line.split()[0] for line in lines[1:]] == names() == sorted([*EXPECTED, "none"])
    assert next(line for line in lines if line.startswith("none")).endswith("no NFS mount")
