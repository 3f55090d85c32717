"""Sends a script over a wire and makes a row of every request."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pytest_kvcache.client import framing
from pytest_kvcache.client.remote import RemoteWire
from pytest_kvcache.client.wire import ENDED, Exchange, Wire
from pytest_kvcache.endpoint.address import below, target
from pytest_kvcache.load import records
from pytest_kvcache.load.answers import settle
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


class Encoder:
    """Turns prompts into requests. Each text is encoded once, however many prompts it is part of.

    Args:
        plan: Gives URL, model and further fields of the requests.
        headers: More HTTP headers, by name.
    """

    def __init__(self, plan: LoadPlan, headers: dict[str, str]) -> None:
        self._host, self._path = (
            urlsplit(plan.base_url).netloc,
            target(urlsplit(below(plan.base_url, "chat/completions"))),
        )
        self._plan, self._headers = plan, headers
        self._texts: dict[str, bytes] = {}

    def prepare(self, turns: Iterable[Turn]) -> None:
        """Encode all texts of `turns`, so that none is left to encode when a turn is due."""
        for turn in turns:
            for message in turn.messages:
                for part in message.parts:
                    self._text(part)

    def encode(self, history: Iterable[Message], turn: Turn, user: int | None) -> bytes:
        """Return the whole request of a turn."""
        messages = b",".join(self._message(m) for m in (*history, *turn.messages))
        rest: dict[str, object] = {
            "model": self._plan.model,
            "max_tokens": turn.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._plan.workload.ignore_eos:
            rest["ignore_eos"] = True
        rest |= self._plan.extra_body
        body = b'{"messages":[' + messages + b"]," + json.dumps(rest).encode()[1:]
        headers = self._headers if user is None else {**self._headers, "x-user-id": str(user)}
        return framing.request(self._host, self._path, body, headers)

    def _message(self, message: Message) -> bytes:
        content = b" ".join(self._text(part) for part in message.parts)
        return b'{"role":"%s","content":"%s"}' % (message.role.encode(), content)

    def _text(self, part: str) -> bytes:
        found = self._texts.get(part)
        if found is None:
            found = self._texts[part] = json.dumps(part)[1:-1].encode()
        return found


@dataclass
class Driver:
    """Sends conversations and single requests.

    Args:
        plan: The plan of the run, for its limits.
        encoder: Makes the requests.
        wire: Sends the requests: a `RemoteWire` in a run, so that nothing that is done here delays a stamp.
        user_header: Whether requests name their user.
    """

    plan: LoadPlan
    encoder: Encoder
    wire: Wire | RemoteWire
    user_header: bool
    rows: list[RequestRecord] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    _ended: list[RequestRecord] = field(default_factory=list)
    _told: int = 0

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

    def at_once(self, turns: Iterable[Turn]) -> list[RequestRecord]:
        """Send `turns` together, now, and return their rows when all are answered."""
        now = time.monotonic()
        rows = []
        for turn in turns:
            row = RequestRecord(user=0, round=turn.round, intended_start_s=0.0)
            rows.append(row)
            self._submit([], turn, None, now, functools.partial(_settle_only, row, now))
        self.wire.run()
        return rows

    def one_by_one(self, turns: Iterable[Turn]) -> list[RequestRecord]:
        """Send each of `turns` when the answer to the one before is there, and return their rows."""
        return [row for turn in turns for row in self.at_once([turn])]

    def run(self, conversations: Iterable[Conversation], start_s: float) -> None:
        """Send all turns at their times after `start_s` (CLOCK_MONOTONIC); `rows` then has a row for each of them."""
        for conversation in conversations:
            _User(conversation, self, start_s).begin()
        self.wire.run()

    def _submit(
        self,
        history: list[Message],
        turn: Turn,
        user: int | None,
        due_s: float,
        done: Callable[[Exchange], None],
    ) -> None:
        # Nothing is retried: a failure is a result.
        workload = self.plan.workload
        payload = self.encoder.encode(history, turn, user if self.user_header else None)
        self.wire.submit(
            Exchange(
                payload,
                due_s,
                due_s + workload.request_timeout_s,
                done,
                stall_s=workload.token_timeout_s,
            )
        )


def _settle_only(row: RequestRecord, start_s: float, exchange: Exchange) -> None:
    settle(exchange, row, start_s=start_s)


class _User:
    """One user's session: the next question is sent when it is due, but not before the last answer is there."""

    def __init__(self, conversation: Conversation, driver: Driver, start_s: float) -> None:
        self._conversation, self._driver, self._start_s = conversation, driver, start_s
        self._history: list[Message] = []
        self._left = iter(conversation.turns)
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
        for turn in self._left:
            # The request is put together as soon as it can be, never when it is due.
            due_s = max(self._start_s + turn.at_s, time.monotonic())
            if due_s - self._start_s < driver.plan.workload.duration_s:
                done = functools.partial(self._answered, turn)
                driver._submit(self._history, turn, self._conversation.user, due_s, done)
                return
            self._rows[turn.round].error = "the answer before it came after the end of the run"
            driver._ended.append(self._rows[turn.round])

    def _answered(self, turn: Turn, exchange: Exchange) -> None:
        if exchange.failed == ENDED:
            settle(exchange, self._rows[turn.round], start_s=self._start_s)
            return
        if self._conversation.answers_return:
            self._settle(turn, exchange)
            self.begin()
        else:
            # Reading an answer takes a millisecond or two: it waits until no other request is to be put together.
            self.begin()
            self._driver.later(lambda: self._settle(turn, exchange))

    def _settle(self, turn: Turn, exchange: Exchange) -> None:
        driver, record = self._driver, self._rows[turn.round]
        answer = settle(exchange, record, start_s=self._start_s)
        exchange.pieces.clear()  # the timer of its deadline keeps the exchange for minutes yet
        driver.note(record)
        if record.status == records.OK and self._conversation.answers_return:
            self._history += [*turn.messages, Message("assistant", (answer,))]
