"""Find the first cause in a component's log, which need not be its first line, and what to do about the cause."""

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

# Words that state a failure without an exception: those of argparse and clap, panics, a program's last words.
_STATED = re.compile(r"\berror: |panicked at|^fatal error:|^Failed to |NOTICE: Failed|^Error: ", re.IGNORECASE)
_SEVERE = frozenset({"ERROR", "CRITICAL", "FATAL"})
_LONGEST = 500


@dataclass(frozen=True)
class Diagnosis:
    """What a log says about a failure.

    Args:
        cause: The line that states the cause, "" for an empty log.
        hint: What to do about a known cause, "" for an unknown one.
    """

    cause: str
    hint: str


@dataclass(frozen=True)
class _Found:
    """A statement and the known cause that explains it, if any."""

    statement: Statement
    known: Cause | None

    @property
    def is_consequence(self) -> bool:
        return self.known is not None and self.known.kind == "consequence"

    def rank(self) -> int:
        """Return how near the statement is to the cause, 0 being the nearest; -1 where it states no failure."""
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

    The log of a failed vLLM has lines of many processes in no certain order: a process that was told to end, or that
    lost another process, may write first. So a known cause anywhere comes before all other exceptions, and these come
    before reports of a process that ended without a word. A consequence of another process's end is the cause only
    where the log says nothing else.
    """
    found = [each for each in _found(log) if each.rank() >= 0]
    if found:
        return min(found, key=_Found.rank).diagnosis()
    last = next((line.text for line in reversed(read(log)) if line.text.strip()), "")
    return Diagnosis(last.strip()[:_LONGEST], "")


def diagnose_file(path: Path) -> Diagnosis:
    """Return the diagnosis of the log at `path`; an empty diagnosis where the log does not exist."""
    try:
        return diagnose(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return Diagnosis("", "")


def failed_storage(log: str) -> Diagnosis:
    """Return why a store or a load failed, from the log of a running component; empty where it does not say.

    The reason is the first known failure of storage, or else the first exception.
    """
    found = _found(log)
    storage = (each for each in found if each.known is not None and each.known.kind == "storage")
    thrown = (each for each in found if each.statement.kind == "exception" and not each.is_consequence)
    first = next(storage, None) or next(thrown, None)
    return first.diagnosis() if first else Diagnosis("", "")


def known(statement: Statement, causes: Iterable[Cause] = CAUSES) -> Cause | None:
    """Return the first of `causes` that explains a statement, None where none does."""
    return next((cause for cause in causes if cause.explains(statement.text, statement.context)), None)


def _found(log: str) -> Sequence[_Found]:
    """Return the statements of a log, each with its known cause, if any.

    Lines that are mere consequences are taken out with their tracebacks before the other lines are put together, since
    a process may have written them between the lines of another.
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
