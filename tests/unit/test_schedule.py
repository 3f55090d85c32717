"""When each user asks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.catalogue import load
from pytest_kvcache.config.profile import Workload
from pytest_kvcache.workload.schedule import UserSchedule, gap_s, schedule, session_life_s

ARTICLE = load(None).profile("qwen3-8b").workload

workloads = st.builds(
    Workload,
    users=st.integers(1, 20),
    rounds=st.integers(2, 30),
    qps=st.floats(0.1, 20),
    shared_prompt_tokens=st.just(0),
    context_tokens=st.just((1,)),
    answer_tokens=st.just(1),
    duration_s=st.floats(0.1, 30),
)


def all_turns(users: tuple[UserSchedule, ...]) -> list[float]:
    """Return the times of all turns, sorted."""
    return sorted(turn.at_s for user in users for turn in user.turns)


def test_the_articles_times() -> None:
    """With 15 users, 20 rounds and 2 requests/s: a gap of 7.5 s, a life of 142.5 s, a new user each 9.5 s."""
    assert gap_s(ARTICLE) == 7.5
    assert session_life_s(ARTICLE) == 142.5
    joins = [u.turns[0].at_s for u in schedule(ARTICLE) if u.turns[0].question == 1]
    assert joins[:3] == [0.0, 9.5, 19.0]
    assert len(joins) == 127  # 1200 s / 9.5 s, rounded up


def test_users_who_were_there_already() -> None:
    """User i of 15 is i steps younger than the oldest, continues mid-session, and the oldest has nothing left."""
    aged = [u for u in schedule(ARTICLE) if u.user <= 15]
    assert [u.user for u in aged] == list(range(2, 16))
    youngest = aged[-1]  # 9.5 s old: has asked at 0 and 7.5 s of its life, asks next at 15 s of it
    assert youngest.turns[0].question == 3
    assert youngest.turns[0].at_s == pytest.approx(5.5)
    assert youngest.turns[-1].question == 20
    assert youngest.turns[-1].at_s == pytest.approx(142.5 - 9.5)


def test_users_are_numbered_from_first_user() -> None:
    """`first_user` shifts numbers and nothing else."""
    plain, shifted = schedule(ARTICLE), schedule(ARTICLE, first_user=1000)
    assert [u.user + 1000 for u in plain] == [u.user for u in shifted]
    assert [u.turns for u in plain] == [u.turns for u in shifted]


def test_the_requests_per_second_that_were_asked_for() -> None:
    """The schedule holds 20/19 of the 2 requests/s: R questions in a session that counts as R - 1 gaps long."""
    assert len(all_turns(schedule(ARTICLE))) / ARTICLE.duration_s == pytest.approx(2 * 20 / 19, rel=0.01)


def test_the_tiny_profile_asks_at_even_spacing() -> None:
    """cpu-tiny's users do not ask in bursts: turns are 1/qps apart, but for the extra user at the start."""
    tiny = load(None).profile("cpu-tiny").workload
    times = all_turns(schedule(tiny))
    spacings = [b - a for a, b in itertools.pairwise(times)]
    assert sum(s > 0.9 / tiny.qps for s in spacings) > 0.8 * len(spacings)


@settings(deadline=None)
@given(workloads)
def test_every_schedule_is_in_order_and_in_time(workload: Workload) -> None:
    """Turns lie in [0, duration), one gap apart, with rising questions up to `rounds`, users numbered once."""
    users = schedule(workload)
    assert len({u.user for u in users}) == len(users)
    for user in users:
        questions = [t.question for t in user.turns]
        assert questions == list(range(questions[0], questions[0] + len(questions)))
        assert questions[-1] <= workload.rounds
        assert all(0 <= t.at_s < workload.duration_s for t in user.turns)
        for a, b in itertools.pairwise(user.turns):
            assert b.at_s - a.at_s == pytest.approx(gap_s(workload))


@settings(deadline=None)
@given(workloads)
def test_no_more_users_at_a_time_than_asked_for_and_one(workload: Workload) -> None:
    """At no time do more than `users` + 1 sessions have turns around them."""
    users = schedule(workload)
    for moment in all_turns(users):
        active = sum(u.turns[0].at_s <= moment <= u.turns[-1].at_s for u in users)
        assert active <= workload.users + 1
