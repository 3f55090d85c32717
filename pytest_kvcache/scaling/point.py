"""One size of a run: so many servers, so many users of the reference workload."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache.workload.multi_round import MultiRoundQa


@dataclass(frozen=True)
class Point:
    """A size.

    Args:
        servers: vLLM servers behind the balancer.
        users: Users in the system at a time.
        context_tokens: Length of a user's context.
        duration_s: For how long requests are started.
        every_s: Time between two questions of a user (s).
        rounds: Questions that a user asks.
        answer_tokens: Length of an answer.
        shared_tokens: Length of the prompt that all users share.
    """

    servers: int
    users: int
    context_tokens: int = 9000
    duration_s: float = 1200.0
    every_s: float = 7.5
    rounds: int = 20
    answer_tokens: int = 100
    shared_tokens: int = 1000

    @property
    def qps(self) -> float:
        """Requests a second."""
        return self.users / self.every_s

    @property
    def requests(self) -> int:
        """Requests of one load."""
        return round(self.qps * self.duration_s)

    @property
    def sessions(self) -> int:
        """Users who ask at all in one load: those of its start, and those who join when others have ended."""
        return self.users + round(self.requests / self.rounds)

    def workload(self, **more: object) -> MultiRoundQa:
        """Return the workload.

        Args:
            more: Keys with other values.
        """
        values: dict[str, object] = {
            "context_tokens": (self.context_tokens,),
            "duration_s": self.duration_s,
            "users": self.users,
            "rounds": self.rounds,
            "qps": self.qps,
            "shared_prompt_tokens": self.shared_tokens,
            "answer_tokens": self.answer_tokens,
        }
        return MultiRoundQa.model_validate(values | more)
