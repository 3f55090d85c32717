"""How much went through the metadata server, by the counters of its transports, on changed captures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.storage import data_path
from pytest_kvcache.storage.layouts import LayoutEvidence, judge
from pytest_kvcache.storage.mountstats import Operation, Reading
from pytest_kvcache.storage.transports import Transport
from tests.unit.storage.test_mountstats import reading

TCP, RDMA, BLOCK = "pnfs-flexfiles-tcp-v41", "pnfs-flexfiles-rdma", "pnfs-block-rdma-quiet"
FLEX, FILES = "LAYOUT_FLEX_FILES", "LAYOUT_NFSV4_1_FILES"
#: Segments that a WRITE and a READ of 512 KiB take on the captured soft-RoCE mounts.
SEGMENTS = 4


def pair(sample: str) -> tuple[Reading, Reading]:
    """Return a captured mount before and after its load."""
    return reading(f"{sample}.before"), reading(f"{sample}.after")


def sent(after: Reading, *, writes: int = 0, reads: int = 0, more: int = 0) -> Reading:
    """Return a reading whose metadata server was sent so many of the WRITEs and READs, and so many requests more."""
    (transport,) = after.transports
    numbers = list(transport.numbers)
    numbers[5] += writes + reads + more
    if transport.kind == "rdma":
        numbers[10] += writes * SEGMENTS
        numbers[14] += reads * (512 << 10)
    return replace(after, transports=(Transport(transport.kind, tuple(numbers)),))


def status(before: Reading, after: Reading) -> tuple[str, str]:
    """Return the finding of the requirement `pnfs`."""
    found = judge(LayoutEvidence(before, [], after), "pnfs", 4 << 20)
    return found.status, found.found


@pytest.mark.parametrize("layout", [FLEX, FILES])
@pytest.mark.parametrize(
    ("sample", "writes", "reads", "expected", "told"),
    [
        (RDMA, 0, 0, "pass", ""),
        (RDMA, 400, 0, "fail", "400 WRITEs and 0 READs went through the metadata server, 100.0%"),
        (RDMA, 0, 400, "fail", "0 WRITEs and 400 READs went through the metadata server, 100.0%"),
        (RDMA, 400, 400, "fail", "400 WRITEs and 400 READs went through the metadata server, 100.0%"),
        (RDMA, 1, 0, "warn", "1 WRITEs and 0 READs went through the metadata server, 0.2%"),
        (RDMA, 0, 1, "warn", "0 WRITEs and 1 READs went through the metadata server, 0.2%"),
        (RDMA, 120, 40, "warn", "120 WRITEs and 40 READs went through the metadata server, 30.0%"),
        (TCP, 0, 0, "pass", ""),
        (TCP, 100, 0, "fail", "100 WRITEs or READs went through the metadata server, 50.0%"),
        (TCP, 100, 100, "fail", "200 WRITEs or READs went through the metadata server, 100.0%"),
        (TCP, 10, 0, "warn", "10 WRITEs or READs went through the metadata server, 5.0%"),
    ],
)
def test_tries_that_were_given_up_before_they_were_sent(  # noqa: PLR0917 - the columns of the table
    layout: str, sample: str, writes: int, reads: int, expected: str, told: str
) -> None:
    """As many tries as requests look like I/O by the layout; what the metadata server was sent tells otherwise."""
    before, after = (replace(r, layout=layout) for r in pair(sample))
    # The captured load's one COMMIT went to the data server.
    more = 1 if layout == FILES else 0
    found = status(before, sent(after, writes=writes, reads=reads, more=more))
    assert (found[0], told in found[1]) == (expected, True), found[1]


def test_one_request_over_tcp_is_warned_of() -> None:
    """One of 200 requests that came to the metadata server is told with its share."""
    before, after = pair(TCP)
    assert status(before, sent(after, writes=1))[0] == "warn"
    found = data_path.between(before, sent(after, writes=1))
    assert (found.either, found.request_share, found.bytes) == (1, 1 / 200, (100 << 20) // 200)


def test_bytes_of_reads_decide_beside_their_number() -> None:
    """Few READs of the metadata server that brought most of the bytes are most of it."""
    before, after = pair(RDMA)
    (transport,) = sent(after, reads=10).transports
    numbers = list(transport.numbers)
    numbers[14] += 150 << 20
    found = data_path.between(before, replace(after, transports=(Transport("rdma", tuple(numbers)),)))
    assert found.request_share < 0.1
    assert found.byte_share > 0.5


def test_requests_that_moved_no_data() -> None:
    """RDMA counts data apart from requests: many requests without data are told, and prove nothing of the layout."""
    before, after = pair(RDMA)
    found = data_path.between(before, sent(after, more=400))
    assert (found.writes, found.reads, found.either, found.other) == (0, 0, 0, 400)
    assert status(before, sent(after, more=400))[0] == "warn"
    assert data_path.between(before, sent(after, more=3)).words == []


def test_small_requests_fit_into_rdma_messages() -> None:
    """Data that may be sent within a message moves no chunk: then requests alone decide."""
    before, after = pair(RDMA)
    small = {**after.bytes, "server_write": 400 << 10, "server_read": 400 << 10}
    found = data_path.between(before, sent(replace(after, bytes=small), more=400))
    assert (found.either, found.other) == (400, 0)


def test_commits_through_the_metadata_server_are_no_writes() -> None:
    """Files layouts may have COMMITs go to the metadata server, which moves no data."""
    before, after = (replace(r, layout=FILES) for r in pair(TCP))
    assert status(before, sent(after, more=1))[0] == "pass"


@pytest.mark.parametrize("change", ["no transport", "began anew", "another one", "too short"])
def test_transports_that_do_not_tell(change: str) -> None:
    """Where the transports say nothing, a layout's use is not proved, which is warned of."""
    before, after = pair(RDMA)
    (transport,) = after.transports
    changed = {
        "no transport": (),
        "began anew": (Transport("rdma", (0,) * len(transport.numbers)),),
        "another one": (transport, transport),
        "too short": (Transport("rdma", transport.numbers[:4]),),
    }
    found = status(before, replace(after, transports=changed[change]))
    assert (found[0], "do not tell" in found[1]) == ("warn", True), found[1]


def test_all_connections_of_nconnect_count() -> None:
    """The requests of all connections are those that the metadata server was sent."""
    before, after = pair(TCP)
    idle = Transport("tcp", (0,) * 13)
    busy = Transport("tcp", (*(0,) * 5, 100, *(0,) * 7))
    first, last = (replace(r, transports=(*r.transports, t)) for r, t in ((before, idle), (after, busy)))
    assert data_path.between(first, last).either == 100


def neighbour(of: Reading, **rows: Operation) -> Reading:
    """Return another mount of the same server, which counted these operations."""
    return replace(of, source=f"{of.source}-home", layout="", operations=rows, neighbours=())


def test_other_mounts_of_the_server_are_no_part_of_it() -> None:
    """They send by the same transports: what they sent is taken off, whatever it was."""
    before, after = pair(TCP)
    rows = {"READ": Operation(100, 100), "GETATTR": Operation(50, 50), "SEQUENCE": Operation(9, 9)}
    first = replace(before, neighbours=(neighbour(before),))
    last = replace(sent(after, more=150), neighbours=(neighbour(after, **rows),))
    assert data_path.between(first, last).words == []
    assert data_path.between(before, sent(after, more=150)).either == 150


def test_answers_of_an_older_block_layout() -> None:
    """With block layouts each READ and WRITE goes to the metadata server, whatever its transports say."""
    before, after = pair(BLOCK)
    rows = {**after.operations, "WRITE": Operation(ops=40, transmissions=40, bytes_sent=40 << 19)}
    found = data_path.between(before, replace(after, operations=rows))
    assert (found.writes, found.reads, found.request_share) == (40, 0, 0.1)


@pytest.mark.parametrize(
    ("sample", "share", "expected"),
    [(TCP, 0.0, "pass"), (TCP, 0.25, "warn"), (RDMA, 0.75, "fail"), (RDMA, 1.0, "fail")],
)
def test_a_client_that_is_its_own_server_for_a_share(sample: str, share: float, expected: str) -> None:
    """Bytes beyond those that requests carried are NFS LOCALIO's: a share is warned of, and fails where it is most."""
    before, after = pair(sample)
    rows = dict(after.operations)
    for name in ("READ", "WRITE"):
        row = rows[name]
        rows[name] = replace(
            row,
            ops=round(row.ops * (1 - share)),
            transmissions=round(row.transmissions * (1 - share)),
            bytes_sent=round(row.bytes_sent * (1 - share)),
            bytes_received=round(row.bytes_received * (1 - share)),
        )
    after = replace(after, operations=rows)
    found = status(before, after)
    assert (found[0], "LOCALIO" in found[1]) == (expected, share > 0), found[1]
    assert data_path.between(before, after).local_share == pytest.approx(share, abs=0.001)


def test_read_plus_is_a_read() -> None:
    """READ_PLUS carries data as READ does; its holes are no LOCALIO."""
    before, after = pair(TCP)
    row = after.operation("READ")
    rows = {**after.operations, "READ": Operation(), "READ_PLUS": replace(row, bytes_received=row.bytes_received // 2)}
    after = replace(after, operations=rows)
    assert status(before, after)[0] == "pass"
    assert status(before, sent(after, reads=100))[0] == "fail"
    fewer = replace(after, events=(*after.events[:25], 40, after.events[26]))
    assert data_path.between(before, fewer).reads == 60


@given(
    st.sampled_from([RDMA, TCP, BLOCK]),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 50),
    st.lists(st.integers(0, 2**40), max_size=27),
)
def test_whatever_counters_say_shares_are_shares(
    sample: str, writes: int, reads: int, more: int, events: list[int]
) -> None:
    """No counters lead to an error, a negative number or a share beyond one; more to the server never gives less."""
    before, after = pair(sample)
    found = data_path.between(before, replace(sent(after, writes=writes, reads=reads, more=more), events=tuple(events)))
    assert min(found.writes, found.reads, found.either, found.other, found.bytes, found.local_bytes) >= 0
    assert all(0.0 <= share <= 1.0 for share in (found.request_share, found.byte_share, found.local_share))
    least = data_path.between(before, replace(after, events=tuple(events)))
    assert found.share >= least.share
