"""What a session tells of its work while it goes on: phases of a boot, and a load under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


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

    def load(self, line: str) -> None:
        """A load goes on; `line` is what it said last: requests done and failed, mean TTFT so far."""

    def rest(self) -> None:
        """Nothing is under way: what was shown is taken away."""


class Silent:
    """Stands where nobody looks."""

    def phase(self, where: str, what: str) -> None:
        """Do nothing."""

    def waiting(self, names: Sequence[str]) -> None:
        """Do nothing."""

    def load(self, line: str) -> None:
        """Do nothing."""

    def rest(self) -> None:
        """Do nothing."""
