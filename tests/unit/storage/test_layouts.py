"""Whether layouts were used, judged on readings of real mounts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvcache.storage import layouts, mounts
from pytest_kvcache.storage.layouts import LayoutEvidence, judge
from pytest_kvcache.storage.mountstats import Operation
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import Require
from tests.unit.storage.test_mountstats import SAMPLES, reading

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
    """Writes by the layout and no reads: the page cache answered, which is warned of; READs without it fail."""
    evidence = seen("pnfs-flexfiles-rdma", link=IDLE, words=MOVED)
    assert evidence.after is not None
    events = (*evidence.after.events[:25], 0, 400)
    through_server = replace(evidence.after, events=events)
    evidence.after = replace(through_server, operations={**through_server.operations, "READ": Operation()})
    assert judge(evidence, require, MOVED).status == "warn"
    evidence.after = through_server
    assert judge(evidence, require, MOVED).status == "fail"


def test_a_mount_that_went_away() -> None:
    """Without counters there is nothing to judge."""
    assert judge(LayoutEvidence(before=None, links_before=[]), "pnfs", MOVED).status == "fail"


def grown(layout: str, *, tried: int, writes: int, reads: int = 0, **more: int) -> LayoutEvidence:
    """Return what a mount counts that tried so many writes and reads by a layout and sent so many WRITEs and READs."""
    base = reading("pnfs-flexfiles-rdma.before")
    before = replace(base, layout=layout, operations={}, events=(0,) * 27, bytes=dict.fromkeys(base.bytes, 0))
    operations = {"WRITE": Operation(ops=writes, errors=more.get("errors", 0)), "READ": Operation(ops=reads)}
    for name in ("LAYOUTRETURN", "LAYOUTERROR", "LAYOUTGET"):
        operations[name] = Operation(ops=more.get(name, 0), errors=more.get(f"{name}_errors", 0))
    events = (*(0,) * 24, more.get("delays", 0), tried, tried)
    counts = {**before.bytes, "server_write": MOVED, "server_read": MOVED}
    after = replace(before, operations=operations, events=events, bytes=counts, age_s=before.age_s + 1)
    return LayoutEvidence(before=before, links_before=[], after=after)


BLOCK, FLEX, FILES = "LAYOUT_BLOCK_VOLUME", "LAYOUT_FLEX_FILES", "LAYOUT_NFSV4_1_FILES"


@pytest.mark.parametrize(
    ("layout", "tried", "writes", "reads", "status", "told"),
    [
        (BLOCK, 400, 0, 0, "pass", ""),
        (BLOCK, 400, 400, 0, "fail", "400 WRITEs and 0 READs went through the metadata server, 100.0%"),
        (BLOCK, 400, 0, 400, "fail", "0 WRITEs and 400 READs"),
        (BLOCK, 400, 1, 0, "warn", "1 WRITEs and 0 READs went through the metadata server, 0.2%"),
        (BLOCK, 400, 150, 150, "warn", "150 WRITEs and 150 READs"),
        ("LAYOUT_SCSI", 400, 300, 300, "fail", "300 WRITEs"),
        (FLEX, 400, 400, 400, "pass", ""),
        (FLEX, 400, 401, 400, "warn", "1 WRITEs and 0 READs"),
        (FLEX, 400, 500, 400, "warn", "100 WRITEs"),
        (FLEX, 400, 800, 400, "fail", "400 WRITEs"),
        (FLEX, 1, 400, 400, "fail", "399 WRITEs and 399 READs"),
        (FILES, 400, 400, 500, "warn", "0 WRITEs and 100 READs"),
    ],
)
def test_the_share_of_the_metadata_server(  # noqa: PLR0917 - the columns of the table
    layout: str, tried: int, writes: int, reads: int, status: str, told: str
) -> None:
    """What went to the metadata server beside a layout is warned of with its share, and fails where it is most."""
    found = judge(grown(layout, tried=tried, writes=writes, reads=reads), "pnfs", MOVED)
    assert (found.status, told in found.found) == (status, True), found.found


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ({"errors": 3}, "warn", "3 WRITEs and READs failed"),
        ({"errors": 3, "delays": 3}, "pass", ""),
        ({"errors": 3, "delays": 2}, "warn", "1 WRITEs and READs failed"),
        ({"errors": 3, "delays": 4, "LAYOUTGET": 9, "LAYOUTGET_errors": 4}, "warn", "3 WRITEs and READs failed"),
        ({"LAYOUTRETURN": 1}, "warn", "LAYOUTRETURN 1"),
        ({"LAYOUTERROR": 2}, "warn", "LAYOUTERROR 2"),
        # The protocol has a client ask again: after a delay, during a recall, where layouts come later.
        ({"LAYOUTGET": 9, "LAYOUTGET_errors": 4, "delays": 4}, "pass", ""),
        ({"LAYOUTGET": 9, "LAYOUTGET_errors": 4}, "pass", ""),
    ],
)
def test_what_gives_a_layout_up_is_warned_of(more: dict[str, int], status: str, told: str) -> None:
    """Errors of I/O and layouts that were given back in the window are told; retries that are asked for are none."""
    found = judge(grown(FLEX, tried=400, writes=400, reads=400, **more), "pnfs", MOVED)
    assert (found.status, told in found.found) == (status, True), found.found


@pytest.mark.parametrize(("delays", "told"), [(0, "gave no layout 4 times"), (3, "gave no layout 1 times"), (4, "")])
def test_layouts_that_were_not_given_are_told_beside_what_came_of_it(delays: int, told: str) -> None:
    """Where some I/O went to the metadata server, it is told how often the server gave no layout in the window."""
    more = {"LAYOUTGET": 9, "LAYOUTGET_errors": 4, "delays": delays}
    found = judge(grown(BLOCK, tried=400, writes=10, reads=0, **more), "pnfs", MOVED)
    assert (found.status, told in found.found, "LAYOUTGET gave" in found.found) == ("warn", True, bool(told))


def test_errors_before_the_window_are_none_of_it() -> None:
    """LAYOUTGET that failed before the I/O says nothing of it."""
    seen = grown(FLEX, tried=400, writes=400, reads=400)
    assert seen.before is not None
    assert seen.after is not None
    old = {"LAYOUTGET": Operation(ops=5, errors=5), "LAYOUTERROR": Operation(ops=3)}
    seen.before = replace(seen.before, operations=old)
    seen.after = replace(seen.after, operations={**seen.after.operations, **old})
    assert judge(seen, "pnfs", MOVED).status == "pass"


def test_a_client_that_is_its_own_server() -> None:
    """Bytes that moved without a READ or WRITE are NFS LOCALIO, which proves nothing of a network."""
    found = judge(grown(FLEX, tried=0, writes=0), "pnfs", MOVED)
    assert (found.status, "LOCALIO" in found.found) == ("fail", True)
    assert judge(grown(BLOCK, tried=400, writes=0), "pnfs", MOVED).status == "pass"


@pytest.mark.parametrize("told_by", ["mountinfo", "options"])
@pytest.mark.parametrize(
    ("layer", "connections", "status"),
    [
        ("InfiniBand", [("rdma", "10.0.0.1")], "pass"),
        ("InfiniBand", [("rdma", "10.0.0.1"), ("tcp", "10.0.0.1")], "pass"),
        ("InfiniBand", [("rdma", "10.0.0.1"), ("tcp", "10.0.0.1:2049")], "pass"),
        ("InfiniBand", [("rdma", "10.0.0.1"), ("tcp", "10.0.0.2")], "warn"),
        ("InfiniBand", [("rdma", "10.0.0.1"), ("tcp", "10.0.0.2:2049")], "warn"),
        ("InfiniBand", [("rdma", "10.0.0.1"), ("tcp", "fe80::2")], "warn"),
        ("InfiniBand", [], "warn"),
        ("Ethernet", [("rdma", "10.0.0.1"), ("tcp", "10.0.0.2")], "pass"),
        ("Ethernet", [], "pass"),
    ],
)
def test_tcp_over_infiniband_moves_the_same_counters(
    told_by: str, layer: str, connections: list[tuple[str, str]], status: str
) -> None:
    """Where data servers may be reached by IPoIB, the port's counters do not prove RDMA."""
    evidence = seen("pnfs-flexfiles-rdma", link=replace(IDLE, layer=layer), words=MOVED)
    assert evidence.after is not None
    if told_by == "mountinfo":
        evidence.server = "10.0.0.1"
    else:
        evidence.after = replace(evidence.after, options={**evidence.after.options, "addr": "10.0.0.1"})
    evidence.connections = tuple(connections)
    found = judge(evidence, "pnfs-rdma", MOVED)
    assert (found.status, "not proved" in found.found) == (status, status == "warn"), found.found


@pytest.mark.parametrize(
    ("own", "other", "status"),
    [("fe80::1%ib0", "fe80::1", "pass"), ("FE80::1", "[fe80::1]:2049", "pass"), ("fe80::1", "fe80::11", "warn")],
)
def test_addresses_of_one_host_are_one(own: str, other: str, status: str) -> None:
    """Port, brackets, scope and capitals make no other host of the metadata server."""
    evidence = seen("pnfs-flexfiles-rdma", link=replace(IDLE, layer="InfiniBand"), words=MOVED)
    evidence.server, evidence.connections = own, (("rdma", own), ("tcp", other))
    assert judge(evidence, "pnfs-rdma", MOVED).status == status


@pytest.mark.parametrize("moved", [1000, MOVED])
@pytest.mark.parametrize(
    "change",
    ["at its end", "at the end of 64 bits", "began anew", "appeared", "went", "counts nothing", "lost a counter"],
)
def test_links_that_do_not_count_on(change: str, moved: int) -> None:
    """Whatever a second link may have moved uncounted, the way is not proved; it is never said to be TCP."""
    evidence = seen("pnfs-flexfiles-rdma", link=IDLE, words=moved)
    first = replace(IDLE, device="mlx5_1", counters={"port_xmit_data": 10, "port_rcv_data": 10})
    last = {
        "at its end": replace(first, counters={"port_xmit_data": 2**32 - 1, "port_rcv_data": 11}),
        "at the end of 64 bits": replace(first, counters={"port_xmit_data": 2**64 - 1, "port_rcv_data": 11}),
        "began anew": replace(first, counters={"port_xmit_data": 3, "port_rcv_data": 11}),
        "lost a counter": replace(first, counters={"port_rcv_data": 11}),
        "counts nothing": replace(first, counters={}),
    }.get(change, first)
    if change == "counts nothing":
        first = last
    evidence.links_before += [first] if change != "appeared" else []
    evidence.links_after += (last,) if change != "went" else ()
    found = judge(evidence, "pnfs-rdma", MOVED)
    assert (found.status, "not proved" in found.found, "data servers over TCP" in found.found) == ("warn", True, False)


def test_a_link_that_is_down_all_the_time_is_no_matter() -> None:
    """A second port without a cable does not count, and moved nothing."""
    evidence = seen("pnfs-flexfiles-rdma", link=IDLE, words=MOVED)
    down = replace(IDLE, port="2", state="DOWN", counters={})
    evidence.links_before.append(down)
    evidence.links_after += (down,)
    assert judge(evidence, "pnfs-rdma", MOVED).status == "pass"


@pytest.mark.parametrize("words", [2**32 - 1, -1])
def test_links_whose_counters_stand_still(words: int) -> None:
    """A counter at its end, or one that began anew, leaves the way unproved; it is no sign of TCP."""
    busy = replace(IDLE, counters={"port_xmit_data": 10, "port_rcv_data": 10})
    found = judge(seen("pnfs-flexfiles-rdma", link=busy, words=max(words, 0)), "pnfs-rdma", MOVED)
    assert (found.status, "stands still or began anew" in found.found) == ("warn", True), found.found


def test_the_doctors_evidence_is_of_the_opened_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters, and the metadata server's address, are those of the mount that holds the folder."""
    fake = tmp_path / "proc"
    fake.mkdir()
    options = "rw,vers=4.2,proto=rdma,addr=192.168.77.1"
    (fake / "mountinfo").write_text(f"21 1 1:0 / / rw - ext4 a rw\n9 21 0:5 / {tmp_path} rw - nfs4 s:/kv {options}\n")
    text = (SAMPLES / "pnfs-flexfiles-rdma.before.mountstats").read_text()
    (fake / "mountstats").write_text(text.replace(" on /mnt/kv with", f" on {tmp_path} with"))
    monkeypatch.setattr(mounts, "PROC", fake)
    with layouts.evidence(tmp_path / "not" / "yet") as found:
        (tmp_path / "file").write_text("x")
    assert (found.server, found.before) == ("192.168.77.1", found.after)
    assert found.after is not None
    assert found.after.layout == "LAYOUT_FLEX_FILES"
