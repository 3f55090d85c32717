"""Halving over releases: what is tested next, and what is known in the end."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.history.halving import Halving, Outcome


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, frozenset[int]]:
    """Return a number of releases, the one that brought a change (the number: none), and those without verdict."""
    count = draw(st.integers(2, 40))
    change = draw(st.integers(1, count))
    skipped = draw(st.one_of(st.just(frozenset[int]()), st.frozensets(st.integers(1, count - 1))))
    return count, change, skipped


def halved(count: int, change: int, skipped: frozenset[int]) -> Halving:
    """Test releases until nothing more can be known; return what is known, whose outcomes are in order of the steps."""
    outcomes: dict[int, Outcome] = {}
    while (at := Halving(count, outcomes).next) is not None:
        assert at not in outcomes
        bound = Halving(count, outcomes).steps_left
        outcomes[at] = "skipped" if at in skipped else "bad" if at >= change else "good"
        if at not in skipped:
            assert Halving(count, outcomes).steps_left < bound
    assert Halving(count, outcomes).steps_left == 0
    return Halving(count, outcomes)


@given(histories())
def test_the_release_is_found_or_is_among_those_left(history: tuple[int, int, frozenset[int]]) -> None:
    """Wherever the change is and whatever has no verdict: it is found, or is among neighbours that have none."""
    count, change, skipped = history
    found = halved(count, change, skipped)
    if change == count:
        assert found.first_bad is None
        assert found.found is None
        assert found.is_none_worse is (count - 1 not in skipped)
    else:
        assert change in found.suspects
        assert found.found in {None, change}
        # No wider than it must be: each of those left has no verdict, but for one that is known to be bad.
        assert {*found.suspects} - {found.first_bad} <= skipped
        assert not found.is_none_worse
    assert found.last_good == 0 or (found.last_good < change and found.last_good not in skipped)


@given(histories())
def test_no_step_is_wasted(history: tuple[int, int, frozenset[int]]) -> None:
    """At most ceil(log2 n) + 1 steps have a verdict, whatever the others are; the newest release is the first one."""
    count, change, skipped = history
    outcomes = halved(count, change, skipped).outcomes
    assert next(iter(outcomes)) == count - 1
    without = sum(outcome == "skipped" for outcome in outcomes.values())
    assert len(outcomes) <= math.ceil(math.log2(count)) + without + 1


@given(histories())
def test_a_release_without_a_verdict_gives_way_to_a_neighbour(history: tuple[int, int, frozenset[int]]) -> None:
    """The step after one without a verdict tests the nearest release, on either side, that has not been tested."""
    count, change, skipped = history
    order = list(halved(count, change, skipped).outcomes)
    for number, (at, then) in enumerate(itertools.pairwise(order)):
        if at in skipped:
            between = range(min(at, then) + 1, max(at, then))
            assert all(each in order[:number] for each in between)


def test_nothing_is_looked_for_where_the_newest_is_not_worse() -> None:
    """One step is enough where the newest release is good."""
    assert halved(40, 40, frozenset()).outcomes == {39: "good"}


def test_steps_of_another_list_of_releases_are_used() -> None:
    """Outcomes that an earlier bisect left in any order narrow the releases as far as they can."""
    found = Halving(10, {9: "bad", 2: "good", 7: "bad", 5: "skipped", 3: "good"})
    assert [*found.suspects] == [4, 5, 6, 7]
    assert found.next in {4, 6}
