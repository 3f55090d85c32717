"""When each user of a steady load asks: a pure function.

N users, each in a place of its own, share q requests a second. A request is due every 1/q seconds, from each of the N
places in turn, so that a user asks every N/q seconds. A user asks R questions and leaves, and a new user takes the
place at its next turn. At the start the rounds of the places are spread evenly over a session, as if the run had gone
on forever: there are exactly q requests a second and, at any time, N users at all rounds of their sessions.

With an odd N a round-robin balancer over two servers sends each user to the other server next time, which is what
shared tiers are for; with an even N a user stays with its server.
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
        round: Number of the user's question, from 1.
        at_s: When the request is due, after the start of the run; negative for a request before the start.
    """

    user: int
    round: int
    at_s: float


def steady(
    *, users: int, rounds: int, qps: float, duration_s: float, first_user: int = 0, before: bool = False
) -> Iterator[Due]:
    """Yield the requests of a run in order, or with `before` the last N requests before its start.

    Args:
        users: Number of users (N).
        rounds: Questions that a user asks (R).
        qps: Requests/s over all users (q).
        duration_s: Length of the run.
        first_user: Users are numbered from `first_user + 1` on.
        before: Whether to yield what a run without a beginning would have sent just before the start, and what caches
            would therefore hold.
    """
    turns = range(-users, 0) if before else range(math.ceil(duration_s * qps - _ROUNDING))
    for k in turns:
        place, asked = k % users, k // users
        # Floor division gives generation -1 to a user that asked its last question before the start.
        generation, question = divmod(place * rounds // users + asked, rounds)
        yield Due(first_user + 1 + place + users * (generation + 1), question + 1, k / qps)
