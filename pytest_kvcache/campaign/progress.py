"""What a session tells of its work while it goes on: phases of a boot, and a load under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LoadSoFar:
    """A load under way.

    Args:
        requests: How many the load has.
        done: How many were answered whole.
        failed: How many were not.
        ttft_s: Mean TTFT of those that were answered (s); None before the first of them.
        left_s: Until the last request is due (s).
    """

    requests: int
    done: int
    failed: int
    ttft_s: float | None
    left_s: float


class Progress(Protocol):
    """Is told of a session's work. What it does must raise nothing, and take no time beside a load."""

    def phase(self, where: str, what: str) -> None:
        """A phase began.

        Args:
            where: Tier, boot and context, for people.
            what: What is done there.
        """

    def waiting(self, names: Sequence[str]) -> None:
        """Components of a boot that are not ready yet."""

    def load(self, so_far: LoadSoFar) -> None:
        """A load goes on."""

    def rest(self) -> None:
        """Nothing is under way: what was shown is taken away."""


class Silent:
    """Stands where nobody looks."""

    def phase(self, where: str, what: str) -> None:
        """Do nothing."""

    def waiting(self, names: Sequence[str]) -> None:
        """Do nothing."""

    def load(self, so_far: LoadSoFar) -> None:
        """Do nothing."""

    def rest(self) -> None:
        """Do nothing."""
