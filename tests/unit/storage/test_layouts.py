"""Whether layouts were used, judged on readings of real mounts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_kvcache.storage.layouts import LayoutEvidence, judge
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require
from tests.unit.storage.test_mountstats import reading

MOVED = 4 << 20
IDLE = Link("mlx5_0", "1", "ACTIVE", "100 Gb/sec", "Ethernet", {"port_xmit_data": 0, "port_rcv_data": 0})


def seen(sample: str, *, link: Link | None = None, words: int = 0, over: str = "rdma") -> LayoutEvidence:
    """Return what was counted around the load of a sample, on a machine with this link."""
    after = replace(link, counters={"port_xmit_data": words, "port_rcv_data": words}) if link else None
    return LayoutEvidence(
        before=reading(f"{sample}.before"),
        links_before=[link] if link else [],
        after=reading(f"{sample}.after"),
        links_after=(after,) if after else (),
        connections=((over, "10.0.0.1"),),
    )


@pytest.mark.parametrize(
    ("sample", "status"),
    [
        ("plain-rdma-quiet", "fail"),
        ("plain-v4.2-tcp", "fail"),
        ("plain-v3-rdma", "fail"),
        ("pnfs-scsi-fallback-rdma", "fail"),
        ("pnfs-block-rdma-quiet", "pass"),
        ("pnfs-flexfiles-tcp-v41", "pass"),
        ("pnfs-flexfiles-rdma", "pass"),
        ("pnfs-flexfiles-rdma-tcg", "pass"),
    ],
)
def test_layouts_in_use(sample: str, status: str) -> None:
    """I/O by layouts passes; a mount without them, and the silent fallback to the metadata server, fail."""
    assert judge(seen(sample), "pnfs", MOVED).status == status


def test_the_fallback_is_explained() -> None:
    """A layout that was granted and not used is shown with the errors of GETDEVICEINFO."""
    found = judge(seen("pnfs-scsi-fallback-rdma"), "pnfs", MOVED)
    assert found.found.endswith("through the metadata server (WRITE 200, GETDEVICEINFO 2 with 2 errors)")


def test_data_over_rdma() -> None:
    """An active link that carried at least what was moved proves the way of the data."""
    found = judge(seen("pnfs-flexfiles-rdma", link=IDLE, words=MOVED // 4), "pnfs-rdma", MOVED)
    assert (found.status, found.found.endswith("8 MiB over them")) == ("pass", True)


def test_data_servers_over_tcp() -> None:
    """With metadata over RDMA and data over TCP the links carry too little."""
    found = judge(seen("pnfs-flexfiles-rdma", link=IDLE, words=1000), "pnfs-rdma", MOVED)
    assert (found.status, "data servers over TCP" in found.found) == ("fail", True)
    none = judge(seen("pnfs-flexfiles-rdma", link=IDLE, words=MOVED, over="tcp"), "pnfs-rdma", MOVED)
    assert "no RPC connection of this kernel is over RDMA" in none.found


def test_links_that_are_down_or_count_nothing() -> None:
    """A link that is down fails; counters that are not there leave the way unproved, which is warned of."""
    down = replace(IDLE, state="DOWN")
    assert judge(seen("pnfs-flexfiles-rdma", link=down, words=MOVED), "pnfs-rdma", MOVED).status == "fail"
    assert judge(seen("pnfs-flexfiles-rdma"), "pnfs-rdma", MOVED).status == "warn"


@pytest.mark.parametrize("require", ["pnfs", "pnfs-rdma"])
def test_reads_that_came_from_elsewhere(require: Require) -> None:
    """Writes by the layout and reads by none: the page cache answered, which is warned of."""
    evidence = seen("pnfs-flexfiles-rdma", link=IDLE, words=MOVED)
    assert evidence.after is not None
    events = (*evidence.after.events[:25], 0, 400)
    evidence.after = replace(evidence.after, events=events)
    assert judge(evidence, require, MOVED).status == "warn"


def test_a_mount_that_went_away() -> None:
    """Without counters there is nothing to judge."""
    assert judge(LayoutEvidence(before=None, links_before=[]), "pnfs", MOVED).status == "fail"
