"""Sends a script over a wire and makes a row of every request."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pytest_kvcache.client.wire import ENDED, Exchange, Wire
from pytest_kvcache.load import records
from pytest_kvcache.load.ahead import Ahead, Key
from pytest_kvcache.load.answers import settle
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.script import Conversation, Message, Turn


@dataclass
class Progress:
    """How far a run is.

    Args:
        sent: Number of requests that were sent and have ended.
        finished: Number of those that were answered well.
        failed: Number of those that failed.
        ttft_sum_s: Sum of the TTFT of the finished ones.
    """

    sent: int = 0
    finished: int = 0
    failed: int = 0
    ttft_sum_s: float = 0.0

    def __add__(self, other: Progress) -> Progress:
        return Progress(
            self.sent + other.sent,
            self.finished + other.finished,
            self.failed + other.failed,
            self.ttft_sum_s + other.ttft_sum_s,
        )


@dataclass
class Driver:
    """Sends conversations and single requests.

    Args:
        plan: The plan of the run, for its limits.
        encoder: Makes the requests.
        wire: Sends the requests.
        user_header: Whether requests name their user.
        first: Requests that are made already, of this process and of others.
    """

    plan: LoadPlan
    encoder: Encoder
    wire: Wire
    user_header: bool
    first: Mapping[Key, bytes] = field(default_factory=dict)
    rows: list[RequestRecord] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    _ended: list[RequestRecord] = field(default_factory=list)
    _told: int = 0

    def newly_ended(self) -> tuple[list[RequestRecord], float]:
        """Return the rows that ended since the last call, and the time (s) up to which all requests have ended."""
        fresh = self._ended[self._told :]
        self._told = len(self._ended)
        return fresh, min((row.intended_start_s for row in self.rows if not row.over), default=math.inf)

    def note(self, record: RequestRecord) -> None:
        """Count a row that has ended."""
        progress = self.progress
        progress.sent += 1
        if record.status == records.OK:
            progress.finished += 1
            progress.ttft_sum_s += record.ttft_s or 0.0
        else:
            progress.failed += 1
        self._ended.append(record)

    def at_once(self, turns: Iterable[Turn]) -> list[RequestRecord]:
        """Send `turns` together, now, and return their rows when all are answered."""
        now = time.monotonic()
        rows = []
        for turn in turns:
            row = RequestRecord(user=0, round=turn.round, intended_start_s=0.0)
            rows.append(row)
            payload = self.encoder.encode((), turn, None)
            self._submit(payload, None, now, functools.partial(_settle_only, row, now))
        self.wire.run()
        return rows

    def one_by_one(self, turns: Iterable[Turn]) -> list[RequestRecord]:
        """Send each of `turns` when the answer to the one before is there, and return their rows."""
        return [row for turn in turns for row in self.at_once([turn])]

    def run(self, conversations: Iterable[Conversation], start_s: float) -> None:
        """Send all turns at their times after `start_s` (CLOCK_MONOTONIC); `rows` then has a row for each of them."""
        conversations = tuple(conversations)
        with Ahead(conversations, self.encoder, self.first, user_header=self.user_header) as ahead:
            for conversation in conversations:
                _User(conversation, self, ahead, start_s).begin()
            ahead.ask()
            self.wire.run()

    def _submit(
        self,
        payload: bytes,
        fetch: Callable[[], bytes] | None,
        due_s: float,
        done: Callable[[Exchange], None],
    ) -> None:
        # Nothing is retried: a failure is a result.
        workload = self.plan.workload
        deadline_s = due_s + workload.request_timeout_s
        self.wire.submit(Exchange(payload, due_s, deadline_s, done, stall_s=workload.token_timeout_s, fetch=fetch))


def _settle_only(row: RequestRecord, start_s: float, exchange: Exchange) -> None:
    settle(exchange, row, start_s=start_s)


class _User:
    """One user's session: the next question is sent when it is due, but not before the last answer is there."""

    def __init__(self, conversation: Conversation, driver: Driver, ahead: Ahead, start_s: float) -> None:
        self._conversation, self._driver, self._ahead, self._start_s = conversation, driver, ahead, start_s
        self._history: list[Message] = []
        self._next = 0
        exact = driver.plan.workload.ignore_eos
        self._rows = {
            turn.round: RequestRecord(
                user=conversation.user,
                round=turn.round,
                intended_start_s=turn.at_s,
                intended_prompt_tokens=turn.prompt_tokens,
                intended_generated_tokens=turn.answer_tokens if exact else None,
            )
            for turn in conversation.turns
        }
        driver.rows.extend(self._rows.values())

    def begin(self) -> None:
        """Have the next turn sent; once the run's time is over, mark all turns that are left as never sent."""
        driver = self._driver
        turns = self._conversation.turns
        while self._next < len(turns):
            turn = turns[self._next]
            self._next += 1
            due_s = max(self._start_s + turn.at_s, time.monotonic())
            if due_s - self._start_s < driver.plan.workload.duration_s:
                self._submit(turn, due_s)
                return
            self._rows[turn.round].error = "the answer before it came after the end of the run"
            driver._ended.append(self._rows[turn.round])

    def _submit(self, turn: Turn, due_s: float) -> None:
        driver, user = self._driver, self._conversation.user
        done = functools.partial(self._answered, turn)
        if self._conversation.answers_return:
            # The prompt is put together as soon as it can be, never when it is due.
            payload = driver.encoder.encode(self._history, turn, user if driver.user_header else None)
            driver._submit(payload, None, due_s, done)
            return
        self._ahead.want((user, turn.round), due_s)
        driver._submit(b"", functools.partial(self._fetched, turn), due_s, done)

    def _fetched(self, turn: Turn) -> bytes:
        """Return the request of a turn that is due now, and have that of the turn after it made meanwhile."""
        user = self._conversation.user
        if self._next < len(self._conversation.turns):
            following = self._conversation.turns[self._next]
            self._ahead.want((user, following.round), max(self._start_s + following.at_s, time.monotonic()))
        return self._ahead.take((user, turn.round))

    def _answered(self, turn: Turn, exchange: Exchange) -> None:
        if exchange.failed == ENDED:
            settle(exchange, self._rows[turn.round], start_s=self._start_s)
            return
        if self._conversation.answers_return:
            self._settle(turn, exchange)
            self.begin()
        else:
            # Reading an answer takes a millisecond or two: it waits until no send is due.
            self.begin()
            self._driver.wire.when_idle(lambda: self._settle(turn, exchange))

    def _settle(self, turn: Turn, exchange: Exchange) -> None:
        driver, record = self._driver, self._rows[turn.round]
        answer = settle(exchange, record, start_s=self._start_s)
        exchange.pieces.clear()  # the timer of its deadline keeps the exchange for minutes yet
        driver.note(record)
        if record.status == records.OK and self._conversation.answers_return:
            self._history += [*turn.messages, Message("assistant", (answer,))]
