"""What LMCache's `multi-round-qa.py` sends, and when, so that published numbers can be compared.

Source: github.com/LMCache/LMCache, benchmarks/multi_round_qa/multi-round-qa.py, as of commit 2cdc3a8. The texts are the
wire format of a published benchmark and have to be the benchmark's own; the code is not taken from it.
docs/workloads.md lists every difference.

The original's schedule has N users, q requests/s and R rounds. A user asks every gap = N/q seconds. A session counts as
R - 1 gaps long, and a new user joins after every N-th part of a session, which is called a step here. The way in which
the original is written has these consequences:

- At the start there are N users, as if they had joined one step apart in the past. User i is (N - i) steps old and has
  asked int(age/gap) + 1 questions. It has no history: its first prompt is the opening and the next question alone.
- The oldest user has no question left, and sends nothing.
- One more user joins at the start itself, since the original takes 0 on the wall clock as the time of the last join.
- A user asks R questions in R - 1 gaps, so that R/(R - 1) times as many requests are sent as q says.
- The original looks every 0.1 s (the poll interval) which users are due and sleeps in between: requests leave at
  multiples of that interval, and all that fell due since the last look leave together.
- A user's next question is due one gap after the look at which its last question left, and a user joins one step after
  the look at which the last user joined. Each time is late by up to one poll interval, and the delays add up (`drift`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: How often the original looks which users are due (s).
POLL_S = 0.1
#: Length of an answer to a warm-up request (tokens).
WARM_UP_ANSWER_TOKENS = 100
_ROUNDING = 1e-9


def opening(user: int, *, shared_tokens: int, context_tokens: int) -> tuple[str, ...]:
    """Return the beginning of a user's first prompt, in parts to join with spaces; the question follows without one."""
    shared = f"Hi, here's some system prompt: {_filler(shared_tokens)}.For user"
    return shared, f"{user}, here are some other context: {_filler(context_tokens)}."


def question(number: int) -> str:
    """Return the text of question `number` of a session."""
    return f"Here's question #{number}: can you tell me a new long story with a happy ending?"


def warm_up(index: int) -> str:
    """Return the text of a warm-up request."""
    return f"WARMUP: Hi, I'm user {index}. Here are some text: {'hi ' * 100}."


def _filler(tokens: int) -> str:
    return " ".join(["hi"] * tokens)


@dataclass(frozen=True)
class ReferenceRequest:
    """One question.

    Args:
        question: Number of the question in the session, from 1.
        at_s: When the request leaves, after the start of the run.
    """

    question: int
    at_s: float


@dataclass(frozen=True)
class Session:
    """One user, and those of its questions that fall into the run.

    Args:
        user: Number of the user.
        turns: The questions in order.
    """

    user: int
    turns: tuple[ReferenceRequest, ...]


def gap_s(*, users: int, qps: float) -> float:
    """Return the time between two questions of one user (s)."""
    return users / qps


def join_step_s(*, users: int, rounds: int, qps: float) -> float:
    """Return the time between two new users (s)."""
    return gap_s(users=users, qps=qps) * (rounds - 1) / users


def schedule(
    *,
    users: int,
    rounds: int,
    qps: float,
    duration_s: float,
    first_user: int = 0,
    poll_s: float = POLL_S,
    drift: bool = False,
) -> tuple[Session, ...]:
    """Return every user with a question in the run, in the order of joining, as if each answer came at once.

    Args:
        users: N [--num-users].
        rounds: R [--num-rounds].
        qps: q [--qps].
        duration_s: Length of the run [--time].
        first_user: Users are numbered from `first_user + 1` on [--init-user-id].
        poll_s: Time between two looks at which users are due.
        drift: Whether delays add up, as they do in the original; without drift, times are absolute.
    """
    gap = gap_s(users=users, qps=qps)
    step = join_step_s(users=users, rounds=rounds, qps=qps)
    clock = _Clock(poll_s, drift)
    found = []
    for i in range(users):
        age = gap * (rounds - 1) - i * step
        asked = math.floor(age / gap + _ROUNDING) + 1
        times = clock.times((asked - 1) * gap - age, gap, rounds - asked)
        found.append(_session(first_user + i + 1, asked + 1, times, duration_s))
    joins = [0.0, *clock.times(0.0, step, math.ceil(duration_s / step) if step > 0 else 0)]
    for i, joined in enumerate(joins):
        times = [joined, *clock.times(joined, gap, rounds - 1)]
        found.append(_session(first_user + users + i + 1, 1, times, duration_s))
    return tuple(session for session in found if session.turns)


@dataclass(frozen=True)
class _Clock:
    """A clock that finds events due when it looks, at multiples of `poll_s`."""

    poll_s: float
    drift: bool

    def times(self, last_s: float, every_s: float, count: int) -> list[float]:
        """Return when (s) the clock finds `count` events due, which come every `every_s` after `last_s`."""
        found: list[float] = []
        for number in range(1, count + 1):
            due = (found[-1] if found and self.drift else last_s) + (1 if self.drift else number) * every_s
            # With drift, more than the gap must have passed, as the original is written. Without drift, a look that
            # comes just in time finds the event due; so does the original, which always sleeps a little longer.
            looks = math.floor(due / self.poll_s + _ROUNDING) + 1 if self.drift else math.ceil(due / self.poll_s - 1e-6)
            found.append(max(looks, 0) * self.poll_s)
        return found


def _session(user: int, first_question: int, times: list[float], duration_s: float) -> Session:
    asked = (ReferenceRequest(first_question + i, at) for i, at in enumerate(times))
    return Session(user, tuple(a for a in asked if a.at_s < duration_s))
