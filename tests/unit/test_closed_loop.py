"""Turns that wait for answers, and a fixed number of conversations under way, on a clock that the test turns."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.client.wire import TIMED_OUT, Exchange
from pytest_kvcache.load import driver, records
from pytest_kvcache.load.driver import Driver
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.script import Conversation, Message, Turn
from tests.unit.test_ahead import plan

_EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(_EVENTS) + _EVENTS
#: When the clock starts.
START_S = 100.0


class Clocked:
    """Stands in for the client: each answer takes `answer_s`, and time passes only from one event to the next."""

    def __init__(self, answer_s: float, fails: Callable[[int], bool] = lambda _: False) -> None:
        self.now_s, self._answer_s, self._fails = START_S - 1, answer_s, fails
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._open: set[Exchange] = set()
        self.most_open = 0
        self.payloads: list[bytes] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now_s

    def call_at(self, when_s: float, action: Callable[[], None]) -> None:
        """Have it called then."""
        heapq.heappush(self._events, (when_s, next(self._order), action))

    def when_idle(self, action: Callable[[], None]) -> None:
        """Call it at once."""
        action()

    def submit(self, exchange: Exchange) -> None:
        """Send it when it is due."""
        self._open.add(exchange)
        self.call_at(exchange.due_s, lambda: self._send(exchange))

    def _send(self, exchange: Exchange) -> None:
        assert exchange.fetch is not None
        self.payloads.append(exchange.fetch())
        exchange.sent_s = self.now_s
        self.most_open = max(self.most_open, sum(each.sent_s is not None for each in self._open))
        self.call_at(self.now_s + self._answer_s, lambda: self._answer(exchange))

    def _answer(self, exchange: Exchange) -> None:
        self._open.discard(exchange)
        if self._fails(len(self.payloads)):
            exchange.failed = f"{TIMED_OUT}: no answer"
        else:
            exchange.pieces.append((self.now_s, ANSWER))
        exchange.done(exchange)

    def run(self) -> None:
        """Let time pass until nothing is under way."""
        while self._open:
            when_s, _, action = heapq.heappop(self._events)
            self.now_s = max(self.now_s, when_s)
            action()


def sent(
    monkeypatch: pytest.MonkeyPatch,
    conversations: tuple[Conversation, ...],
    wire: Clocked,
    *,
    concurrency: int | None,
    duration_s: float = 1000.0,
) -> list[RequestRecord]:
    """Send conversations and return the rows in order."""
    monkeypatch.setattr(driver, "time", wire)
    sent = plan(duration_s=duration_s)
    made = Driver(sent, Encoder(sent, {}), cast("Any", wire), user_header=False, concurrency=concurrency)
    made.run(conversations, lambda: START_S)
    return records.in_order(made.rows)


def talk(user: int, *after_s: float | None, at_s: float = 0.0) -> Conversation:
    """Return a conversation of turns after those delays; None for one at `at_s`."""
    return Conversation(
        user,
        tuple(
            Turn(n, 0.0 if each is not None else at_s, (Message("user", (f"{user} {n}",)),), 1, 9, each)
            for n, each in enumerate(after_s, 1)
        ),
    )


def test_a_turn_begins_so_long_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delay counts from the end of the answer before it, or from when it is known that there will be none."""
    conversations = (talk(1, None, 2.0, 0.0, at_s=5.0), talk(2, None, 1.0))
    rows = sent(monkeypatch, conversations, Clocked(0.5), concurrency=None)
    assert [(r.user, r.round, r.intended_start_s, r.due_s, r.status) for r in rows] == [
        (2, 1, 0.0, 0.0, "ok"),
        (2, 2, 1.5, 1.5, "ok"),
        (1, 1, 5.0, 5.0, "ok"),
        (1, 2, 7.5, 7.5, "ok"),
        (1, 3, 8.0, 8.0, "ok"),
    ]
    failing = sent(monkeypatch, conversations, Clocked(0.5, lambda count: count == 1), concurrency=None)
    assert [(r.user, r.due_s, r.status == "ok") for r in failing] == [
        (2, 0.0, False),
        (2, 1.5, True),
        (1, 5.0, True),
        (1, 7.5, True),
        (1, 8.0, True),
    ]


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    concurrency=st.integers(1, 5),
    delay_s=st.sampled_from([0.0, 0.25]),
)
def test_so_many_conversations_are_under_way(lengths: list[int], concurrency: int, delay_s: float) -> None:
    """All turns are sent, conversations begin in order, each as soon as another ends, and never more."""
    conversations = tuple(talk(user, 0.0, *[delay_s] * (n - 1)) for user, n in enumerate(lengths, 1))
    wire = Clocked(1.0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        rows = sent(monkeypatch, conversations, wire, concurrency=concurrency)
    assert len(rows) == sum(lengths)
    assert {row.status for row in rows} == {"ok"}
    assert [row.user for row in rows if row.round == 1] == list(range(1, len(lengths) + 1))
    spans = {
        user: (
            min(row.due_s or 0.0 for row in rows if row.user == user),
            max((row.due_s or 0.0) + 1.0 for row in rows if row.user == user),
        )
        for user in range(1, len(lengths) + 1)
    }
    for begin_s, _ in spans.values():
        under_way = sum(other <= begin_s < end for other, end in spans.values())
        assert under_way <= concurrency
        assert begin_s in {0.0, *(end for _, end in spans.values())}
    assert sum(begin_s == 0.0 for begin_s, _ in spans.values()) == min(concurrency, len(lengths))
    assert wire.most_open <= concurrency


@pytest.mark.parametrize("concurrency", [1, 3, 200])
def test_no_turn_begins_after_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch, concurrency: int) -> None:
    """A closed loop ends with the run's time: what was not due by then was never asked for, and has no row."""
    conversations = tuple(talk(user, 0.0, 0.0) for user in range(1, 101))
    rows = sent(monkeypatch, conversations, Clocked(1.0), concurrency=concurrency, duration_s=10.0)
    assert len(rows) == min(10 * concurrency, 200)
    assert max(row.due_s or 0.0 for row in rows) < 10.0
    assert {row.status for row in rows} == {"ok"}


def test_requests_of_a_closed_loop_are_those_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request that leaves has the text of its turn, made ahead in the order in which they are sent."""
    conversations = tuple(talk(user, 0.0, 3.0) for user in range(1, 30))
    wire = Clocked(0.5)
    rows = sent(monkeypatch, conversations, wire, concurrency=4)
    assert len(rows) == len(wire.payloads) == 58
    for row, payload in zip(sorted(rows, key=lambda r: (r.due_s, r.user)), wire.payloads, strict=True):
        assert f'"content":"{row.user} {row.round}"'.encode() in payload
