"""How another machine's clock stands to ours, and what that makes of times that it measured (pure).

A round trip of a message bounds the difference of two clocks, whatever the delays were: the other side cannot have read
its clock before the message left, nor after the answer arrived (NTP's on-wire protocol, RFC 5905, 8). Many round trips
bound it more closely than the best of them does, since the shortest way there and the shortest way back may belong to
different ones. Nothing is assumed about how a delay divides between the two directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Two clocks go apart by no more than this while they are compared: Linux slews a clock by 500 ppm at most.
_APART = 1e-3
_NS = 1e9


@dataclass(frozen=True)
class RoundTrip:
    """A message and its answer. Our clock and the node's are each CLOCK_MONOTONIC of its machine.

    Args:
        sent_ns: When the message left, by our clock.
        received_ns: When it arrived, by the node's clock.
        replied_ns: When the answer left, by the node's clock.
        returned_ns: When that arrived, by our clock.
    """

    sent_ns: int
    received_ns: int
    replied_ns: int
    returned_ns: int

    @property
    def middle_ns(self) -> int:
        """The middle of the round trip by our clock."""
        return (self.sent_ns + self.returned_ns) // 2

    @property
    def delay_ns(self) -> int:
        """How long message and answer were under way together."""
        return (self.returned_ns - self.sent_ns) - (self.replied_ns - self.received_ns)


@dataclass(frozen=True)
class ClockReading:
    """By how much a node's clock is ahead of ours at one moment.

    Args:
        at_ns: The moment, by our clock.
        offset_ns: The node's clock less ours.
        uncertainty_ns: The offset may be wrong by so much either way, and by no more.
        round_trip_ns: The shortest delay of a message and its answer.
    """

    at_ns: int
    offset_ns: float
    uncertainty_ns: float
    round_trip_ns: int


def read(trips: Sequence[RoundTrip]) -> ClockReading:
    """Return what round trips within a second or so say together.

    Where they contradict each other, as when the clock was set in between, the uncertainty covers all of them.

    Args:
        trips: At least one.
    """
    best = min(trips, key=lambda trip: trip.delay_ns)
    at_ns = best.middle_ns
    lows, highs = [], []
    for trip in trips:
        apart_ns = _APART * (abs(trip.middle_ns - at_ns) + (trip.returned_ns - trip.sent_ns) / 2)
        lows.append(trip.replied_ns - trip.returned_ns - apart_ns)
        highs.append(trip.received_ns - trip.sent_ns + apart_ns)
    low, high = max(lows), min(highs)
    if low > high:
        low, high = min(lows), max(highs)
    return ClockReading(at_ns, (low + high) / 2, (high - low) / 2, best.delay_ns)


@dataclass(frozen=True)
class ClockComparison:
    """Readings of a node's clock before, during and after a load.

    The offset is taken to change evenly between the first reading and the last. Readings in between say how far that
    is from the truth.

    Args:
        readings: In the order of their times; at least one.
    """

    readings: tuple[ClockReading, ...]

    @property
    def drift(self) -> float:
        """By how much faster the node's clock goes than ours (1e-6: one microsecond a second)."""
        first, last = self.readings[0], self.readings[-1]
        elapsed_ns = last.at_ns - first.at_ns
        return (last.offset_ns - first.offset_ns) / elapsed_ns if elapsed_ns > 0 else 0.0

    @property
    def drift_uncertainty(self) -> float:
        """The drift may be wrong by so much either way."""
        first, last = self.readings[0], self.readings[-1]
        elapsed_ns = last.at_ns - first.at_ns
        return (first.uncertainty_ns + last.uncertainty_ns) / elapsed_ns if elapsed_ns > 0 else _APART

    def offset_ns(self, at_ns: float) -> float:
        """Return the node's clock less ours at a time of our clock."""
        first = self.readings[0]
        return first.offset_ns + self.drift * (at_ns - first.at_ns)

    @property
    def error_s(self) -> float:
        """By how much a time of the node may still be wrong when it is put on our clock (s).

        It is the uncertainty of the readings before and after, and what a reading in between contradicts the line of
        these two by.
        """
        ends_ns = max(self.readings[0].uncertainty_ns, self.readings[-1].uncertainty_ns)
        off_ns = [abs(self.offset_ns(each.at_ns) - each.offset_ns) - each.uncertainty_ns for each in self.readings]
        return (ends_ns + max(0.0, *off_ns)) / _NS

    def node_ns(self, at_ns: float) -> float:
        """Return what the node's clock shows at a time of our clock."""
        return at_ns + self.offset_ns(at_ns)

    def our_ns(self, node_ns: float) -> float:
        """Return what our clock shows at a time of the node's clock."""
        first = self.readings[0]
        # The difference is taken first: two clocks may be years apart, and a float has 53 bits.
        return first.at_ns + (node_ns - first.at_ns - first.offset_ns) / (1 + self.drift)

    def onto_ours(self, *, node_start_ns: int, our_start_ns: int) -> tuple[float, float]:
        """Return `shift_s` and `scale` that make a time after our start of a time after the node's start.

        Args:
            node_start_ns: From when the node counts its times, by its clock.
            our_start_ns: From when we count ours, by our clock.
        """
        first = self.readings[0]
        shift_ns = (first.at_ns - our_start_ns) + (node_start_ns - first.at_ns - first.offset_ns) / (1 + self.drift)
        return shift_ns / _NS, 1 / (1 + self.drift)

    def facts(self) -> dict[str, float]:
        """Return what a run keeps of the comparison."""
        first, last = self.readings[0], self.readings[-1]
        return {
            "offset_before_s": first.offset_ns / _NS,
            "offset_before_uncertainty_s": first.uncertainty_ns / _NS,
            "offset_change_s": (last.offset_ns - first.offset_ns) / _NS,
            "offset_after_uncertainty_s": last.uncertainty_ns / _NS,
            "drift_ppm": self.drift * 1e6,
            "drift_uncertainty_ppm": self.drift_uncertainty * 1e6,
            "error_s": self.error_s,
            "round_trip_s": min(each.round_trip_ns for each in self.readings) / _NS,
            "compared": len(self.readings),
        }


def faults(node: str, facts: dict[str, float], *, error_budget_s: float, drift_budget_ppm: float) -> list[str]:
    """Return why times of a node cannot stand beside those of others, an empty list where they can.

    Args:
        node: Its name.
        facts: Of its clock (`ClockComparison.facts`).
        error_budget_s: The most that a time may be wrong by.
        drift_budget_ppm: The most that the clock may go faster or slower than ours.
    """
    error_s, drift_ppm = facts["error_s"], facts["drift_ppm"]
    found = []
    if error_s > error_budget_s:
        found.append(
            f"times of load node {node} may be wrong by {error_s * 1e3:.3g} ms, budget {error_budget_s * 1e3:g} ms "
            "(workload.clock_error_budget_s): its clock was set or changed its rate during the run, or the network "
            "was too slow to compare it"
        )
    if abs(drift_ppm) - facts["drift_uncertainty_ppm"] > drift_budget_ppm:
        found.append(
            f"the clock of load node {node} went {abs(drift_ppm):.3g} ppm too {'fast' if drift_ppm > 0 else 'slow'}, "
            f"budget {drift_budget_ppm:g} ppm (workload.clock_drift_budget_ppm); have chrony or ntpd keep it"
        )
    return found
