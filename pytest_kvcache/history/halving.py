"""Which release to test next, and what is known by then: halving over releases, some of which cannot be judged (pure).

Releases are numbered from the oldest, 0, which is good by definition: all others are held against it. The newest is
tested first, since there is nothing to look for where it is not worse. A release without a verdict is passed over, and
its nearest neighbour is tested in its place: the next one is always the middle one of those that are untested and may
still tell something. So the steps with a verdict are at most 1 + ceil(log2(count - 1)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: `skipped`: there is no verdict, whatever the reason.
Outcome = Literal["good", "bad", "skipped"]


@dataclass(frozen=True)
class Halving:
    """What the steps so far have shown.

    Args:
        count: Number of releases, at least 2.
        outcomes: Of the releases that were tested, by their numbers from 1 on.
    """

    count: int
    outcomes: Mapping[int, Outcome]

    @property
    def first_bad(self) -> int | None:
        """The oldest release that was seen to be bad; None while none was."""
        return min((at for at, outcome in self.outcomes.items() if outcome == "bad"), default=None)

    @property
    def last_good(self) -> int:
        """The newest release below `first_bad` that was seen to be good; 0 where none was."""
        top = self.count if self.first_bad is None else self.first_bad
        return max((at for at, outcome in self.outcomes.items() if outcome == "good" and at < top), default=0)

    @property
    def is_none_worse(self) -> bool:
        """Whether the newest release is good: then nothing is looked for."""
        return self.outcomes.get(self.count - 1) == "good"

    @property
    def suspects(self) -> range:
        """The releases that may have brought the change: one where it is found, none where nothing is worse."""
        return range(self.last_good + 1, self.count if self.first_bad is None else self.first_bad + 1)

    @property
    def found(self) -> int | None:
        """The release that brought the change; None while that is not known."""
        return self.first_bad if self.first_bad is not None and len(self.suspects) == 1 else None

    @property
    def next(self) -> int | None:
        """The release to test now; None where all that can be known is known."""
        untested = self._untested()
        if not untested:
            return None
        # While no release is known to be bad, the newest comes first.
        return untested[-1] if self.first_bad is None else untested[len(untested) // 2]

    @property
    def steps_left(self) -> int:
        """The most steps that are left if each of them has a verdict."""
        untested = len(self._untested())
        if self.first_bad is None and untested:
            return 1 + (untested - 1).bit_length()
        return untested.bit_length()

    def _untested(self) -> list[int]:
        return [at for at in self.suspects if at not in self.outcomes]
