"""When each user asks: the steady schedule of exact runs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.workload.schedule import Due, steady

loads = st.fixed_dictionaries(
    {
        "users": st.integers(1, 20),
        "rounds": st.integers(2, 30),
        "qps": st.floats(0.1, 20),
        "duration_s": st.floats(0.1, 60),
        "first_user": st.integers(0, 1000),
    }
)


def run(load: dict[str, float], *, before: bool = False, **more: float) -> list[Due]:
    """Return a run's requests."""
    return list(steady(**load, **more, before=before))  # type: ignore[arg-type]


@given(loads)
def test_exactly_the_requests_that_were_asked_for(load: dict[str, float]) -> None:
    """One request each 1/qps seconds from the start to the end, whatever the other parameters."""
    times = [due.at_s for due in run(load)]
    assert times == [i / load["qps"] for i in range(len(times))]
    assert len(times) == pytest.approx(load["duration_s"] * load["qps"], abs=1)


@given(loads)
def test_users_of_all_ages_from_the_start(load: dict[str, float]) -> None:
    """At each time N users are there; each asks its questions in order, one gap apart, until its last one."""
    asked: dict[int, list[Due]] = {}
    for due in run(load):
        asked.setdefault(due.user, []).append(due)
    for own in asked.values():
        assert [d.round for d in own] == list(range(own[0].round, own[0].round + len(own)))
        assert own[-1].round <= load["rounds"]
        gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(own)]
        assert gaps == pytest.approx([load["users"] / load["qps"]] * len(gaps))
    window = run(load)[: int(load["users"])]
    assert len({d.user for d in window}) == len(window)


@given(loads)
def test_what_came_before_the_start(load: dict[str, float]) -> None:
    """Priming is the N requests before the first one: each user who is there already has just asked its last round."""
    before, after = run(load, before=True), run(load)
    assert len(before) == load["users"]
    assert [d.at_s for d in before] == sorted(d.at_s for d in before)
    assert all(d.at_s < 0 for d in before)
    last = {d.user: d.round for d in before}
    for due in after[: int(load["users"])]:
        assert last.get(due.user, 0) == due.round - 1 or due.round == 1
    new = {d.user for d in after} - last.keys()
    assert all(next(d for d in after if d.user == user).round == 1 for user in new)


def test_ages_are_spread_evenly() -> None:
    """With 15 users and 20 rounds the first requests are of rounds spread evenly over a session."""
    first = [d.round for d in run({"users": 15, "rounds": 20, "qps": 2, "duration_s": 7.5})]
    assert first == [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]


def test_users_are_numbered_from_first_user() -> None:
    """`first_user` shifts numbers and nothing else."""
    load = {"users": 3, "rounds": 4, "qps": 1.0, "duration_s": 30.0}
    plain, shifted = run(load), run(load, first_user=1000)
    assert [(d.user + 1000, d.round, d.at_s) for d in plain] == [(d.user, d.round, d.at_s) for d in shifted]
    assert min(d.user for d in run(load, before=True)) >= 1
