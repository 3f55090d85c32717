"""The first cause in a component's log, whichever line comes first, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.serving.diagnosis.cause import Cause
from pytest_kvcache.serving.diagnosis.causes import CAUSES
from pytest_kvcache.serving.diagnosis.endings import ENDINGS
from pytest_kvcache.serving.diagnosis.mixed import tracebacks_of
from pytest_kvcache.serving.diagnosis.statements import CALM, Statement, read, statements

# What states a failure without being an exception: argparse's and clap's words, panics, a program's last ones.
_STATED = re.compile(r"\berror: |panicked at|^fatal error:|^Failed to |NOTICE: Failed|^Error: ", re.IGNORECASE)
_SEVERE = frozenset({"ERROR", "CRITICAL", "FATAL"})
_LONGEST = 500


@dataclass(frozen=True)
class Diagnosis:
    """What a log says.

    Args:
        cause: The line that states the cause, "" for an empty log.
        hint: What to do about a known cause, "" for an unknown one.
    """

    cause: str
    hint: str


@dataclass(frozen=True)
class _Found:
    """A statement and what is known of it."""

    statement: Statement
    known: Cause | None

    @property
    def is_consequence(self) -> bool:
        return self.known is not None and self.known.kind == "consequence"

    def rank(self) -> int:
        """Return how near the cause it is, 0 the nearest; -1 for what states no failure."""
        kind = self.known.kind if self.known else ""
        thrown = self.statement.kind == "exception"
        if kind in {"root", "signal"}:
            return 0 if kind == "root" else 1
        if kind in {"", "symptom", "storage"} and thrown:
            return 2
        if not kind and _STATED.search(self.statement.text):
            return 3
        if kind == "consequence":
            return 9 if self.statement.level not in CALM else -1
        ranks = {"death": 4, "storage": 5, "symptom": 5, "second-hand": 6, "engine-death": 7}
        return ranks[kind] if kind else 8 if self.statement.level in _SEVERE else -1

    def diagnosis(self) -> Diagnosis:
        first, *rest = self.statement.lines
        words = [first.strip()]
        if self.known and not self.known.pattern.search(first):
            # An exception's first line may say only that something is wrong ("1 validation error for ModelConfig").
            words += [line.strip() for line in rest if self.known.pattern.search(line)][:1]
        elif not self.known and rest and first.rstrip().endswith((":", "ModelConfig", "VllmConfig", "Config")):
            words.append(rest[0].strip())
        return Diagnosis(" … ".join(words)[:_LONGEST], self._hint())

    def _hint(self) -> str:
        if self.known is not None and self.known.kind == "second-hand":
            quoted = known(self.statement, (cause for cause in CAUSES if cause not in ENDINGS))
            return (quoted or self.known).hint
        return self.known.hint if self.known else ""


def diagnose(log: str) -> Diagnosis:
    """Find the cause in the log of a component that failed.

    A failed vLLM has the words of many processes in its log, in no certain order: what one says that was told to end,
    or that lost another, may come first. So a known cause anywhere comes before all other exceptions, those before
    reports of a process that ended without a word, and what follows from another's end is never the cause, unless
    nothing else is said.
    """
    found = [each for each in _found(log) if each.rank() >= 0]
    if found:
        return min(found, key=_Found.rank).diagnosis()
    last = next((line.text for line in reversed(read(log)) if line.text.strip()), "")
    return Diagnosis(last.strip()[:_LONGEST], "")


def diagnose_file(path: Path) -> Diagnosis:
    """Return the diagnosis of the log at `path`; of an absent one, an empty diagnosis."""
    try:
        return diagnose(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return Diagnosis("", "")


def failed_storage(log: str) -> Diagnosis:
    """Return why a store or a load failed, from the log of a component that lives; empty where it does not say.

    That is the first known failure of storage, or else the first exception.
    """
    found = _found(log)
    storage = (each for each in found if each.known is not None and each.known.kind == "storage")
    thrown = (each for each in found if each.statement.kind == "exception" and not each.is_consequence)
    first = next(storage, None) or next(thrown, None)
    return first.diagnosis() if first else Diagnosis("", "")


def known(statement: Statement, causes: Iterable[Cause] = CAUSES) -> Cause | None:
    """Return what is known of a statement, None for nothing."""
    return next((cause for cause in causes if cause.explains(statement.text, statement.context)), None)


def _found(log: str) -> Sequence[_Found]:
    """Return what a log states, each with what is known of it.

    What only follows is taken out, with its traceback, before the rest is put together, wherever a process wrote it
    between the lines of another.
    """
    lines = read(log)
    follows = {at for at, line in enumerate(lines) if _follows(line.text)}
    out = follows | tracebacks_of(lines, follows)
    stated = statements([line for at, line in enumerate(lines) if at not in out])
    said = [Statement("message", (lines[at].text,), level=lines[at].level) for at in sorted(follows)]
    return [_Found(each, known(each)) for each in (*stated, *said)]


def _follows(text: str) -> bool:
    cause = known(Statement("message", (text,)), ENDINGS)
    return cause is not None and cause.kind in {"death", "second-hand", "engine-death", "consequence"}
