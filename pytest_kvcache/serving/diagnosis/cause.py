"""A known way to fail: the words of a log that show it, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: What a statement says of a failure: `root` what was wrong, `signal` that a process was ended from outside, `symptom`
#: a failure that mostly has another cause, `storage` that a store or load failed (which ends no server by itself),
#: `death` and `engine-death` that a process ended without a word, `second-hand` what another process has said, and
#: `consequence` what follows from another failure. `diagnose.py` ranks the kinds.
Kind = Literal["root", "signal", "symptom", "storage", "death", "second-hand", "engine-death", "consequence"]


@dataclass(frozen=True)
class Cause:
    """A known way to fail.

    Args:
        name: Name for tests and docs.
        kind: What a statement with this cause says of the failure.
        pattern: Words of the statement.
        hint: What to do, "" where nothing can be said.
        context: Words that must also be in the statement or in what led to it (the calls, the message above).
    """

    name: str
    kind: Kind
    pattern: re.Pattern[str]
    hint: str = ""
    context: re.Pattern[str] | None = None

    def explains(self, text: str, context: str) -> bool:
        """Whether this is the cause of a statement with the words `text` and the context `context`."""
        if not self.pattern.search(text):
            return False
        return self.context is None or bool(self.context.search(text) or self.context.search(context))


def cause(name: str, kind: Kind, pattern: str, hint: str = "", *, context: str = "") -> Cause:
    """Return a known cause.

    Args:
        name: Name for tests and docs.
        kind: What a statement with this cause says of the failure.
        pattern: Regular expression for the words of the statement, in upper or lower case.
        hint: What to do.
        context: Regular expression for words that must also be in the statement or in what led to it.
    """
    found = re.compile(pattern, re.IGNORECASE)
    return Cause(name, kind, found, hint, re.compile(context) if context else None)
