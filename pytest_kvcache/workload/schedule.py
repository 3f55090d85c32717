"""When each user of a steady load asks: a pure function.

N users share q requests a second: one request every 1/q seconds, to the N places in turn, so that a user asks every
N/q seconds. A user asks R questions and leaves, and a new one takes the place at the next turn. At the start the places
are at rounds spread evenly over a session, as if the run had gone on forever: exactly q requests a second and, at any
time, N users of all ages.

With an odd N a round-robin balancer over two servers sends each user to the other server next time, which is what
shared tiers are for; with an even N a user stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Due:
    """One request of a steady load.

    Args:
        user: Number of the user.
        round: Which of its questions, from 1.
        at_s: When, after the start of the run; negative for what would have come before it.
    """

    user: int
    round: int
    at_s: float


def steady(
    *, users: int, rounds: int, qps: float, duration_s: float, first_user: int = 0, before: bool = False
) -> Iterator[Due]:
    """Yield the requests of a run in order, or with `before` the last N that a run without a beginning had sent before.

    Args:
        users: N.
        rounds: R.
        qps: q.
        duration_s: Of the run.
        first_user: Users are numbered from the one after it.
        before: What would have been sent just before the start: it is what caches hold then.
    """
    turns = range(-users, 0) if before else range(math.ceil(duration_s * qps - _ROUNDING))
    for k in turns:
        place, asked = k % users, k // users
        # Floor division takes the last user's predecessor as generation -1.
        generation, question = divmod(place * rounds // users + asked, rounds)
        yield Due(first_user + 1 + place + users * (generation + 1), question + 1, k / qps)
