"""What is said of another machine's clock holds, whatever clocks and delays do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.load import clocks
from pytest_kvcache.load.clocks import ClockComparison, ClockReading, RoundTrip
from pytest_kvcache.load.nodes.coordinator import on_our_clock
from pytest_kvcache.load.records import RequestRecord

MS, S = 1_000_000, 1_000_000_000
#: A float of 1e15 ns, as clocks that have run for days show, is exact to a fraction of this (ns).
ROUNDING_NS = 4.0


@dataclass
class Node:
    """A node's clock, simulated: ahead by `offset_ns` at our time 0, and going apart by `rate`.

    Args:
        offset_ns: Ahead of ours.
        rate: Seconds a second.
    """

    offset_ns: int
    rate: float

    def at(self, our_ns: float) -> int:
        """What it shows."""
        return round(our_ns + self.offset_ns + self.rate * our_ns)

    def read(self, start_ns: int, delays: list[tuple[int, int, int]]) -> ClockReading:
        """Compare it by round trips with the delays there, in the node, and back."""
        trips, now = [], start_ns
        for there, inside, back in delays:
            sent, arrived, left, returned = now, now + there, now + there + inside, now + there + inside + back
            trips.append(RoundTrip(sent, self.at(arrived), self.at(left), returned))
            now = returned + 1000
        return clocks.read(trips)

    def off_ns(self, our_ns: float) -> float:
        """Its true offset."""
        return self.offset_ns + self.rate * our_ns


NODES = st.builds(
    Node,
    offset_ns=st.integers(-(10**15), 10**15),
    rate=st.floats(-5e-4, 5e-4),
)
#: Each way takes what it takes: the two have nothing to do with each other.
DELAYS = st.lists(
    st.tuples(st.integers(0, 20 * MS), st.integers(0, MS), st.integers(0, 20 * MS)), min_size=1, max_size=30
)


@given(node=NODES, delays=DELAYS)
def test_the_true_offset_lies_within_the_uncertainty(node: Node, delays: list[tuple[int, int, int]]) -> None:
    """However delays divide between the two ways, the offset is wrong by no more than is said."""
    found = node.read(0, delays)
    assert abs(found.offset_ns - node.off_ns(found.at_ns)) <= found.uncertainty_ns + ROUNDING_NS


@given(node=NODES, delays=DELAYS)
def test_more_round_trips_say_no_less(node: Node, delays: list[tuple[int, int, int]]) -> None:
    """Many round trips bound the offset at least as closely as the shortest of them alone."""
    best = min(delays, key=lambda each: each[0] + each[2])
    assert node.read(0, delays).uncertainty_ns <= node.read(0, [best]).uncertainty_ns + ROUNDING_NS + 1e-3 * MS


def test_asymmetric_ways_are_bounded_more_closely_together_than_by_the_best() -> None:
    """A trip with a short way there and one with a short way back leave less doubt than half a round trip."""
    node = Node(offset_ns=5 * S, rate=0.0)
    found = node.read(0, [(10_000, 0, MS), (MS, 0, 10_000)])
    assert found.uncertainty_ns < 15_000
    assert abs(found.offset_ns - 5 * S) <= found.uncertainty_ns
    assert found.round_trip_ns == MS + 10_000


def test_a_clock_that_is_set_while_it_is_compared_leaves_doubt() -> None:
    """Round trips that contradict each other give an uncertainty that covers both."""
    before, after = Node(0, 0.0), Node(40 * MS, 0.0)
    trips = [RoundTrip(0, before.at(50_000), before.at(50_000), 100_000)]
    trips += [RoundTrip(200_000, after.at(250_000), after.at(250_000), 300_000)]
    found = clocks.read(trips)
    assert found.uncertainty_ns >= 20 * MS
    assert found.offset_ns - found.uncertainty_ns <= 0
    assert found.offset_ns + found.uncertainty_ns >= 40 * MS


@given(
    node=NODES,
    before=DELAYS,
    after=DELAYS,
    length_s=st.floats(1, 3600),
    at=st.floats(0, 1),
)
def test_times_are_put_on_our_clock_within_the_error(
    node: Node, before: list[tuple[int, int, int]], after: list[tuple[int, int, int]], length_s: float, at: float
) -> None:
    """A time that the node measured between two readings is wrong by no more than `error_s` on our clock."""
    end_ns = 2 * S + round(length_s * S)
    found = ClockComparison((node.read(0, before), node.read(end_ns, after)))
    start_ns = 2 * S
    node_start_ns = round(found.node_ns(start_ns))
    true_ns = start_ns + at * (end_ns - start_ns)
    shift_s, scale = found.onto_ours(node_start_ns=node_start_ns, our_start_ns=start_ns)
    told_s = shift_s + scale * (node.at(true_ns) - node_start_ns) / S
    assert abs(told_s - (true_ns - start_ns) / S) <= found.error_s * (1 + 1e-3) + 2e-8
    assert abs(found.drift - node.rate) <= found.drift_uncertainty + 1e-9


def test_a_node_that_begins_when_told_begins_at_our_start() -> None:
    """The start in the node's time is the moment at which our clock shows the start."""
    node = Node(offset_ns=-77 * S, rate=2e-5)
    found = ClockComparison((node.read(0, [(30_000, 5_000, 30_000)] * 3),))
    told_ns = found.node_ns(S)
    assert abs(told_ns - node.at(S)) <= 30_000 + 2e-5 * S
    assert found.our_ns(told_ns) == pytest.approx(S, abs=1)


def facts_of(offsets_ms: list[float], *, uncertainty_ms: float = 0.02, every_s: float = 10) -> dict[str, float]:
    """Return what a run keeps of a clock with these offsets, ten seconds apart."""
    return ClockComparison(
        tuple(
            ClockReading(round(i * every_s * S), offset * MS, uncertainty_ms * MS, 50_000)
            for i, offset in enumerate(offsets_ms)
        )
    ).facts()


@pytest.mark.parametrize(
    ("offsets_ms", "uncertainty_ms", "expected"),
    [
        ([100, 100, 100], 0.02, []),
        ([0, 0.2, 0.4, 0.6], 0.02, []),  # 20 ppm, which is corrected
        ([0, 0, 50, 50], 0.02, ["may be wrong by", "ppm too fast"]),  # a step forwards
        ([0, 0, -50, -50], 0.02, ["may be wrong by", "ppm too slow"]),  # and back
        ([0, 30, 0, 0], 0.02, ["may be wrong by"]),  # a step that was taken back
        ([0, 5, 10, 15], 0.02, ["ppm too fast"]),  # a steady drift beyond what clocks do
        ([0, -5, -10, -15], 0.02, ["ppm too slow"]),
        ([0, 0], 1.5, ["may be wrong by"]),  # a slow network
        ([0, 2], 1.9, ["may be wrong by"]),  # drift within its uncertainty is none
        ([7], 0.02, []),  # a node that was lost before its clock was compared again
    ],
)
def test_faults(offsets_ms: list[float], uncertainty_ms: float, expected: list[str]) -> None:
    """A step, a drift beyond the budget and a slow network are each named; an even drift is corrected."""
    found = clocks.faults(
        "a:1", facts_of(offsets_ms, uncertainty_ms=uncertainty_ms), error_budget_s=0.001, drift_budget_ppm=100
    )
    assert len(found) == len(expected)
    assert all(words in line and "a:1" in line for words, line in zip(expected, found, strict=True))


def test_a_row_on_our_clock() -> None:
    """All stamps move, the schedule and durations stay, and what was not measured stays so."""
    row = RequestRecord(3, 1, 10.0, due_s=10.0, actual_start_s=10.5, first_token_s=11.0, token_times_s=[11.0, 12.0])
    row.residual_s = 0.25
    found = on_our_clock(row, "b:2", 0.5, 2.0)
    assert (found.intended_start_s, found.residual_s, found.node) == (10.0, 0.25, "b:2")
    assert (found.due_s, found.actual_start_s, found.first_token_s, found.last_token_s) == (20.5, 21.5, 22.5, None)
    assert found.token_times_s == [22.5, 24.5]
