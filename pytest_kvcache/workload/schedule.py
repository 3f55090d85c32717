"""When each user asks, as a pure function of the parameters.

The schedule is that of LMCache's `multi-round-qa.py` (benchmarks/multi_round_qa): with N users at q requests/s and R
rounds, a user asks every N/q seconds, its session lasts (R - 1)·N/q, and a new user joins every 1/N of that. At the
start N users are there as if they had joined one such step apart in the past: user i has asked floor(age_i/gap) + 1
of its questions already (and has no history: its answers were never given), and its next one falls due where it
would have. The oldest has none left. One more user joins at the start itself. Since a session of R questions counts as
R - 1 gaps long, R/(R - 1) times as many requests are sent as q says: the reference's quirk, kept.

Unlike there, times are absolute: a late answer makes its own user late and nobody else, and moves no later turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_kvcache.config.profile import Workload

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Turn:
    """One request that is to be sent.

    Args:
        question: Number of the question in the user's session, from 1.
        at_s: When, after the start of the run.
    """

    question: int
    at_s: float


@dataclass(frozen=True)
class UserSchedule:
    """All turns of one user that fall into the run.

    Args:
        user: Its number.
        turns: In order; `at_s` rises.
    """

    user: int
    turns: tuple[Turn, ...]


def gap_s(workload: Workload) -> float:
    """Return the time between two questions of one user."""
    return workload.users / workload.qps


def session_life_s(workload: Workload) -> float:
    """Return the time from a user's first question to its last."""
    return gap_s(workload) * (workload.rounds - 1)


def schedule(workload: Workload, *, first_user: int = 0) -> tuple[UserSchedule, ...]:
    """Return every user with a turn before `duration_s`, in the order in which they joined.

    Args:
        workload: Users, rounds, qps and duration.
        first_user: The first user is the one after it.
    """
    step = session_life_s(workload) / workload.users
    users = [
        *_already_there(workload, first_user, step),
        *_joining(workload, first_user + workload.users, step),
    ]
    return tuple(user for user in users if user.turns)


def _already_there(workload: Workload, first_user: int, step: float) -> Iterator[UserSchedule]:
    gap = gap_s(workload)
    for i in range(workload.users):
        age = session_life_s(workload) - i * step
        asked = math.floor(age / gap + _ROUNDING) + 1
        next_at = asked * gap - age
        yield _turns(workload, first_user + i + 1, first_question=asked + 1, first_at=next_at)


def _joining(workload: Workload, last_user: int, step: float) -> Iterator[UserSchedule]:
    count = math.ceil(workload.duration_s / step) if step > 0 else 1
    for i in range(count):
        yield _turns(workload, last_user + i + 1, first_question=1, first_at=i * step)


def _turns(workload: Workload, user: int, *, first_question: int, first_at: float) -> UserSchedule:
    gap = gap_s(workload)
    turns = (
        Turn(question, first_at + (question - first_question) * gap)
        for question in range(first_question, workload.rounds + 1)
    )
    return UserSchedule(user, tuple(t for t in turns if t.at_s < workload.duration_s))
