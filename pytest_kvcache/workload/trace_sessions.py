"""Which rows of a trace are turns of one conversation, and when each turn begins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.workload.trace_rows import NumberedRow, TraceFormat, TraceRow


@dataclass(frozen=True)
class TimedRow:
    """A row of a session with the time of its turn.

    Args:
        number: Number of the line in the file, from 1.
        row: What it says.
        at: When the turn begins, in the trace's unit of time after the trace's first request; not before the answer to
            the turn before it.
        after: How long after that answer the turn begins, in the same unit; `at` then says nothing. None where a time
            says when.
    """

    number: int
    row: TraceRow
    at: float = 0.0
    after: float | None = None


@dataclass(frozen=True)
class Sessions:
    """How the rows of a trace become sessions.

    Args:
        path: The trace, for errors.
        form: What its rows mean.
        closed: Whether first turns begin when other sessions end, and not at the times of the trace.
    """

    path: Path
    form: TraceFormat
    closed: bool

    def of(self, rows: Iterable[NumberedRow]) -> list[list[TimedRow]]:
        """Return the turns of each session, in the order in which the sessions begin; a row without one is alone.

        Raises:
            ConfigError: A row's time or place in its session is not what the format has; the message names the line.
        """
        grouped: dict[object, list[NumberedRow]] = {}
        for each in rows:
            name = each.row.session_id
            grouped.setdefault(("row", each.number) if name is None else ("session", name), []).append(each)
        sessions = list(grouped.values())
        for session in sessions:
            self._check(session)
        if self.closed:
            first = 0.0
        else:
            sessions.sort(key=lambda session: session[0].row.timestamp or 0.0)
            first = min((session[0].row.timestamp or 0.0 for session in sessions), default=0.0)
        return [self._timed(session, first) for session in sessions]

    def _check(self, session: list[NumberedRow]) -> None:
        first, later = session[0], session[1:]
        if first.row.timestamp is None and not self.closed:
            raise self._error(
                first,
                "timestamp: Field required",
                "say workload.concurrency (`load --concurrency N`) for a trace without times: so many are sent at once",
            )
        if first.row.delay:
            raise self._error(first, "delay: is of a first turn, which comes after no answer", "say a timestamp")
        if later and not self.form.later_rows:
            raise self._error(
                later[0],
                f"session_id: is that of line {first.number} too, and tools differ in what later rows mean",
                'say workload.trace_format = "aiperf" or "dynamo-delta" (a later row has what is new), or "dynamo" '
                "(it has the whole prompt), or take session_id out where rows are requests of their own",
            )
        if self.form.later_rows == "whole" and len({bool(each.row.hash_ids) for each in session}) > 1:
            odd = next(each for each in session if bool(each.row.hash_ids) != bool(first.row.hash_ids))
            what = "some rows of the session have them and some have not, so that prompts would not begin alike"
            raise self._error(odd, f"hash_ids: {what}", "give all of them hash_ids, or none")

    def _timed(self, session: list[NumberedRow], first: float) -> list[TimedRow]:
        begin = session[0]
        timed = [
            TimedRow(begin.number, begin.row, after=0.0)
            if self.closed
            else TimedRow(begin.number, begin.row, at=(begin.row.timestamp or 0.0) - first)
        ]
        last_s = begin.row.timestamp
        for each in session[1:]:
            timed.append(self._later(each, last_s, first))
            last_s = last_s if each.row.timestamp is None else each.row.timestamp
        return timed

    def _later(self, each: NumberedRow, last: float | None, first: float) -> TimedRow:
        row = each.row
        by_time = self.form.later_timestamps == "time"
        if row.delay is not None and row.timestamp is not None and by_time:
            raise self._error(each, "delay: is beside a timestamp, and only one of them can hold", "take one out")
        if row.delay is not None or row.timestamp is None:
            return TimedRow(each.number, row, after=row.delay or 0.0)
        if last is None:
            raise self._error(each, "timestamp: the rows of the session before it have none", "say a delay")
        if row.timestamp < last:
            raise self._error(each, "timestamp: is before that of the session's row before it", "sort the session")
        if by_time:
            return (
                TimedRow(each.number, row, after=0.0)
                if self.closed
                else TimedRow(each.number, row, row.timestamp - first)
            )
        return TimedRow(each.number, row, after=row.timestamp - last)

    def _error(self, each: NumberedRow, what: str, todo: str) -> ConfigError:
        return ConfigError(what, where=f"{self.path}: line {each.number}", todo=todo)


@dataclass
class LeftOut:
    """Requests of a trace that are not sent.

    Args:
        longest: Longest prompt that is sent (tokens).
        shortest: Shortest one, which the chat template leaves room for.
        longest_with_answer: Longest prompt with its answer that the model takes; None where it does not say.
    """

    longest: float
    shortest: int
    longest_with_answer: int | None = None
    long: int = 0
    short: int = 0
    after: int = 0
    tokens: int = 0
    all_tokens: int = 0

    def takes(self, prompt_tokens: int, answer_tokens: int, *, adds_too_little: bool = False) -> bool:
        """Return whether a request can be sent, and count it where it cannot."""
        self.all_tokens += prompt_tokens
        most = math.inf if self.longest_with_answer is None else self.longest_with_answer
        too_long = prompt_tokens > self.longest or prompt_tokens + answer_tokens > most
        too_short = prompt_tokens < self.shortest or adds_too_little
        self.long += too_long
        self.short += too_short and not too_long
        self.tokens += prompt_tokens if too_long or too_short else 0
        return not (too_long or too_short)

    def follows(self, prompt_tokens: int) -> None:
        """Count a turn that cannot be sent since one before it was not."""
        self.after += 1
        self.tokens += prompt_tokens
        self.all_tokens += prompt_tokens

    @property
    def words(self) -> str:
        """What was left out, for people; "" for nothing."""
        if not self.long and not self.short:
            return ""
        more = f", and {self.after} are turns that come after one of those" if self.after else ""
        return (
            f"{self.long} requests are longer than {self.longest:g} tokens, or than the model takes with their "
            f"answers, and {self.short} are shorter than the chat template ({self.shortest - 1}){more}: "
            f"{self.tokens / self.all_tokens:.2%} of the prompt tokens are left out"
        )
