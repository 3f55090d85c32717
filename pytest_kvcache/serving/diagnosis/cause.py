"""A known way to fail: the words of a log, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: In which order kinds are the cause: `root` says what was wrong, `signal` that a process was ended from outside,
#: `symptom` what something else brought about more often than not, `storage` that a store or load failed (which ends no
#: server by itself), `death` and `engine-death` that a process ended without a word, `second-hand` what another process
#: has said; `consequence` is never a cause.
Kind = Literal["root", "signal", "symptom", "storage", "death", "second-hand", "engine-death", "consequence"]


@dataclass(frozen=True)
class Cause:
    """A known way to fail.

    Args:
        name: For tests and docs.
        kind: What it says of the failure.
        pattern: In its own words.
        hint: What to do, "" where nothing can be said.
        context: What must be in its words or in what led to it (the calls, the message above), too.
    """

    name: str
    kind: Kind
    pattern: re.Pattern[str]
    hint: str = ""
    context: re.Pattern[str] | None = None

    def explains(self, text: str, context: str) -> bool:
        """Whether a statement with these words and this context is of this kind."""
        if not self.pattern.search(text):
            return False
        return self.context is None or bool(self.context.search(text) or self.context.search(context))


def cause(name: str, kind: Kind, pattern: str, hint: str = "", *, context: str = "") -> Cause:
    """Return a known cause.

    Args:
        name: For tests and docs.
        kind: What it says of the failure.
        pattern: A regular expression for its words, in upper or lower case.
        hint: What to do.
        context: A regular expression for what must be in its words or have led to it.
    """
    found = re.compile(pattern, re.IGNORECASE)
    return Cause(name, kind, found, hint, re.compile(context) if context else None)
