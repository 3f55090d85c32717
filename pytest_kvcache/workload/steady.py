"""What all kinds of workload have in common whose users come back on the steady schedule (`schedule.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pytest_kvcache.workload.base import MOST, Workload
from pytest_kvcache.workload.schedule import Due, steady
from pytest_kvcache.workload.script import Conversation, Script, Turn


class SteadyWorkload(Workload):
    """The keys of the schedule, and what follows from them.

    The descriptions name in brackets the option of LMCache's `multi-round-qa.py` that has the same meaning.
    """

    FLAGS: ClassVar[Mapping[str, str]] = {
        **Workload.FLAGS,
        "num_users": "users",
        "num_rounds": "rounds",
        "qps": "qps",
    }

    users: PositiveInt = Field(le=MOST, description="users in the system at a time [--num-users]")
    rounds: int = Field(ge=2, le=MOST, description="questions a user asks [--num-rounds]")
    qps: PositiveFloat = Field(description="requests/s over all users [--qps]")

    @model_validator(mode="after")
    def _requests_can_be_listed(self) -> Self:
        count = self.qps * self.duration_s
        if count > MOST:
            raise ValueError(f"qps and duration_s make {count:.3g} requests; a run has at most {MOST}")
        return self

    def round_s(self) -> float | None:
        """Return the time in which every user asks once (s)."""
        return self.users / self.qps

    def due(self, *, first_user: int = 0, before: bool = False) -> Iterator[Due]:
        """Yield the requests of a run in order, or with `before` the requests that caches hold at its start.

        Args:
            first_user: Users are numbered from `first_user + 1` on.
            before: Whether to yield the last requests that a run without a beginning would have sent before the start.
        """
        return steady(
            users=self.users,
            rounds=self.rounds,
            qps=self.qps,
            duration_s=self.duration_s,
            first_user=first_user,
            before=before,
        )

    def requests(self) -> int | None:
        """Return how many requests are due before the end."""
        return sum(1 for _ in self.due())

    def steady_script(self, turn: Callable[[Due], Turn], *, first_user: int, warm_up: tuple[Turn, ...] = ()) -> Script:
        """Return the run as conversations, primed with what caches hold at its start.

        Args:
            turn: Makes the request that is due.
            first_user: Users are numbered from `first_user + 1` on.
            warm_up: Requests to send before the priming.
        """
        turns: dict[int, list[Turn]] = {}
        for due in self.due(first_user=first_user):
            turns.setdefault(due.user, []).append(turn(due))
        before = list(self.due(first_user=first_user, before=True))
        return Script(
            tuple(Conversation(user, tuple(own)) for user, own in turns.items()),
            warm_up,
            priming=tuple(map(turn, before)),
            primed_users=tuple(due.user for due in before),
        )
