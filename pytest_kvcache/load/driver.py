"""Sends a script over a wire and makes a row of every request."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pytest_kvcache.client.remote import RemoteWire
from pytest_kvcache.client.wire import ENDED, Exchange, Wire
from pytest_kvcache.load import records
from pytest_kvcache.load.ahead import Ahead, Key, key_of
from pytest_kvcache.load.answers import settle
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.script import Conversation, Message, Turn

#: A request that is still to be made is asked for at the latest so long before it is due (s).
_ASK_S = 1.4


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
        wire: Sends the requests: a `RemoteWire` in a run, so that nothing that is done here delays a stamp.
        user_header: Whether requests name their user.
        first: Requests that are made already, of this process and of others.
        concurrency: So many conversations are under way at a time; None where each begins at its time.
        rows: One for each request so far.
        start_s: When the clock of a run started (CLOCK_MONOTONIC); NaN before.
        progress: How far the run is.
    """

    plan: LoadPlan
    encoder: Encoder
    wire: Wire | RemoteWire
    user_header: bool
    first: Mapping[Key, bytes] = field(default_factory=dict)
    concurrency: int | None = None
    rows: list[RequestRecord] = field(default_factory=list)
    start_s: float = math.nan
    progress: Progress = field(default_factory=Progress)
    _ended: list[RequestRecord] = field(default_factory=list)
    _told: int = 0
    _waiting: Iterator[_User] = field(default_factory=lambda: iter(()))

    def newly_ended(self) -> tuple[list[RequestRecord], float]:
        """Return the rows that ended since the last call, and the time (s) up to which all requests have ended."""
        fresh = self._ended[self._told :]
        self._told = len(self._ended)
        return fresh, min((row.intended_start_s for row in self.rows if not row.over), default=math.inf)

    def later(self, action: Callable[[], None]) -> None:
        """Call `action` once nothing else is to be done; at once where the wire is no remote one."""
        if isinstance(self.wire, RemoteWire):
            self.wire.when_idle(action)
        else:
            action()

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

    def at_once(self, turns: Iterable[Turn], user: int | None = None) -> list[RequestRecord]:
        """Send `turns` together, now, and return their rows when all are answered.

        Args:
            turns: What to send.
            user: Whose they are, for a request that is part of a conversation; None for one that is not.
        """
        now = time.monotonic()
        rows = []
        for turn in turns:
            row = RequestRecord(user=user or 0, round=turn.round, intended_start_s=0.0)
            rows.append(row)
            place = self.encoder.place(user or 0, turn)
            payload = self.encoder.encode((), turn, user if self.user_header else None, place)
            self._submit(payload, None, now, functools.partial(_settle_only, row, now), place)
        self.wire.run()
        return rows

    def one_by_one(self, turns: Iterable[Turn]) -> list[RequestRecord]:
        """Send each of `turns` when the answer to the one before is there, and return their rows."""
        return [row for turn in turns for row in self.at_once([turn])]

    def run(self, conversations: Iterable[Conversation], begin: Callable[[], float]) -> None:
        """Send all turns at their times after the start.

        `rows` then has a row for each turn that a time was set for, and for each other turn that came to be due.

        Args:
            conversations: What to send.
            begin: Called when all is ready; returns when the clock starts (CLOCK_MONOTONIC), which may take it a while.
        """
        conversations = tuple(conversations)
        with Ahead(conversations, self.encoder, self.first, user_header=self.user_header) as ahead:
            users = [_User(conversation, self, ahead) for conversation in conversations]
            self.start_s = begin()
            if self.concurrency is None:
                for user in users:
                    user.begin()
            else:
                self._waiting = iter(users)
                for place, conversation in enumerate(conversations):
                    ahead.want_in_turn(key_of(conversation.user, conversation.turns[0]), place)
                for _ in range(self.concurrency):
                    self.begin_next()
            ahead.ask()
            self.wire.run()

    def begin_next(self) -> None:
        """Begin the next conversation that waits for another to end, where there is one and time is left."""
        for user in self._waiting:
            if user.begin():
                return

    def _submit(
        self,
        payload: bytes,
        fetch: Callable[[], bytes] | None,
        due_s: float,
        done: Callable[[Exchange], None],
        place: int,
    ) -> None:
        # Nothing is retried: a failure is a result.
        workload = self.plan.workload
        deadline_s = due_s + workload.request_timeout_s
        self.wire.submit(
            Exchange(payload, due_s, deadline_s, done, stall_s=workload.token_timeout_s, fetch=fetch, place=place)
        )


def _settle_only(row: RequestRecord, start_s: float, exchange: Exchange) -> None:
    settle(exchange, row, start_s=start_s)


class _User:
    """One user's session: the next question is sent when it is due, but not before the last answer is there."""

    def __init__(self, conversation: Conversation, driver: Driver, ahead: Ahead) -> None:
        self._conversation, self._driver, self._ahead = conversation, driver, ahead
        self._history: list[Message] = []
        self._next = 0
        self._ended_s: float | None = None
        self._rows = {turn.round: self._row(turn, turn.at_s) for turn in conversation.turns if turn.after_s is None}
        driver.rows.extend(self._rows.values())

    def _row(self, turn: Turn, at_s: float) -> RequestRecord:
        return RequestRecord(
            user=self._conversation.user,
            round=turn.round,
            intended_start_s=at_s,
            intended_prompt_tokens=turn.prompt_tokens,
            intended_generated_tokens=turn.answer_tokens if self._driver.plan.workload.ignore_eos else None,
        )

    def begin(self) -> bool:
        """Have the next turn sent, and return whether there is one.

        Once the run's time is over, turns that a time was set for are marked as never sent, and there are no others.
        """
        driver = self._driver
        turns = self._conversation.turns
        while self._next < len(turns):
            turn = turns[self._next]
            self._next += 1
            due_s = self._due_s(turn)
            if due_s - driver.start_s < driver.plan.workload.duration_s:
                if turn.after_s is not None:
                    self._rows[turn.round] = self._row(turn, due_s - driver.start_s)
                    driver.rows.append(self._rows[turn.round])
                self._submit(turn, due_s)
                return True
            if turn.after_s is None:
                self._rows[turn.round].error = "the answer before it came after the end of the run"
                driver._ended.append(self._rows[turn.round])
        return False

    def _due_s(self, turn: Turn) -> float:
        """Return when a turn is due, were the answer before it there now or when it came."""
        start_s = self._driver.start_s
        ended_s = start_s if self._ended_s is None else self._ended_s
        return max(start_s + turn.at_s if turn.after_s is None else ended_s + turn.after_s, time.monotonic())

    def _submit(self, turn: Turn, due_s: float) -> None:
        driver, user = self._driver, self._conversation.user
        done = functools.partial(self._answered, turn)
        place = driver.encoder.place(user, turn)
        if self._conversation.answers_return:
            # The prompt is put together as soon as it can be, never when it is due.
            payload = driver.encoder.encode(self._history, turn, user if driver.user_header else None, place)
            driver._submit(payload, None, due_s, done, place)
            return
        self._ahead.want(key_of(user, turn), due_s)
        driver._submit(b"", functools.partial(self._fetched, turn), due_s, done, place)

    def _fetched(self, turn: Turn) -> bytes:
        """Return the request of a turn that is due now, and have that of the turn after it made meanwhile."""
        user = self._conversation.user
        if self._next < len(self._conversation.turns):
            following = self._conversation.turns[self._next]
            self._ended_s = time.monotonic()
            due_s = self._due_s(following)
            self._ahead.want(key_of(user, following), due_s)
            self._driver.wire.call_at(due_s - _ASK_S, self._ahead.ask)
        return self._ahead.take(key_of(user, turn))

    def _answered(self, turn: Turn, exchange: Exchange) -> None:
        if exchange.failed == ENDED:
            settle(exchange, self._rows[turn.round], start_s=self._driver.start_s)
            return
        # A delay counts from the last byte of the answer; after a failure, from when that is known.
        self._ended_s = exchange.pieces[-1][0] if exchange.pieces and not exchange.failed else time.monotonic()
        if self._conversation.answers_return:
            self._settle(turn, exchange)
            self._go_on()
        else:
            # Reading an answer takes a millisecond or two: it waits until no other request is to be put together.
            self._go_on()
            self._driver.later(lambda: self._settle(turn, exchange))

    def _go_on(self) -> None:
        if not self.begin():
            self._driver.begin_next()

    def _settle(self, turn: Turn, exchange: Exchange) -> None:
        driver, record = self._driver, self._rows[turn.round]
        answer = settle(exchange, record, start_s=driver.start_s)
        exchange.pieces.clear()  # the timer of its deadline keeps the exchange for minutes yet
        driver.note(record)
        if record.status == records.OK and self._conversation.answers_return:
            self._history += [*turn.messages, Message("assistant", (answer,))]
