"""Requests that are made ahead: they are the same as any, in bounded memory, whatever becomes of the maker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.load import encoder
from pytest_kvcache.load.ahead import Ahead, first_requests, key_of
from pytest_kvcache.load.driver import Driver
from pytest_kvcache.load.encoder import Encoder, size_bytes
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.prepared import Prepared
from pytest_kvcache.workload.script import Conversation, LateText, Message, Script, Turn
from pytest_kvcache.workload.tokens import Texts, message
from tests.unit.test_exact import VOCABULARY

TEXTS = Texts(VOCABULARY, 0, 0, 0)


def plan(*, duration_s: float = 99) -> LoadPlan:
    """Return a plan of which only the address, the model and the duration (s) matter."""
    workload = MooncakeTrace(path=Path(__file__), context_tokens=(9,), duration_s=duration_s)
    return LoadPlan(
        base_url="http://h:1/v1",
        model="m",
        workload=workload,
        context_tokens=9,
        tokenizer_url="http://h:1",
        rows=Path("r"),
        summary=Path("s"),
    )


def talks(count: int, *, rounds: int = 1, words: int = 40) -> tuple[Conversation, ...]:
    """Return conversations of late texts that share their first block."""
    shared = TEXTS.late(words, "shared")
    return tuple(
        Conversation(
            user,
            tuple(
                Turn(n, user + n / 100, (message("user", shared, TEXTS.late(words, user, n)),), 3)
                for n in range(1, rounds + 1)
            ),
        )
        for user in range(1, count + 1)
    )


def test_a_late_text_is_the_text_of_its_name() -> None:
    """What is made when it is needed is what would have been made at once, a shorter one its beginning."""
    assert str(TEXTS.late(30, "a", 1)) == TEXTS.words(30, "a", 1)
    assert TEXTS.words(30, "a", 1).startswith(TEXTS.words(12, "a", 1))
    late, now = message("user", TEXTS.late(9, "x"), "end"), message("user", TEXTS.words(9, "x"), "end")
    assert late.text == now.text
    made = Encoder(plan(), {})
    assert made.encode((), Turn(1, 0, (late,), 3), 5) == made.encode((), Turn(1, 0, (now,), 3), 5)


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 12), rounds=st.integers(1, 3), header=st.booleans(), data=st.data())
def test_every_request_is_what_it_would_be(count: int, rounds: int, header: bool, data: Any) -> None:
    """In whatever order requests are wanted and taken, each is the one that is made on the spot."""
    conversations = talks(count, rounds=rounds)
    made_before, held = data.draw(st.integers(0, 2000)), data.draw(st.integers(1, 5000))
    made = Encoder(plan(), {"a": "b"})
    first = first_requests(conversations, made, user_header=header, held_bytes=made_before)
    assert set(first) <= {key_of(c.user, c.turns[0]) for c in conversations}
    keys = [key_of(c.user, t) for c in conversations for t in c.turns]
    turns = {key_of(c.user, t): t for c in conversations for t in c.turns}
    order = data.draw(st.permutations(keys))
    wanted = data.draw(st.lists(st.sampled_from(keys)))
    with Ahead(conversations, made, first, user_header=header, held_bytes=held) as ready:
        for key in wanted:
            ready.want(key, time.monotonic() + 60 + turns[key].at_s)
        ready.ask()
        for key in order:
            assert ready.take(key) == made.encode((), turns[key], key[0] if header else None)


def test_no_more_is_held_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are due later wait until others have left; those that are due at once do not."""
    conversations = talks(50)
    size = size_bytes(conversations[0].turns[0])
    asked: list[tuple[int, int]] = []
    made = Encoder(plan(), {})
    with Ahead(conversations, made, {}, user_header=False, held_bytes=3 * size) as ready:
        ask = ready._ask

        def counted(key: tuple[int, int]) -> None:
            if key not in asked:
                asked.append(key)
            ask(key)

        monkeypatch.setattr(ready, "_ask", counted)
        keys = [key_of(each.user, each.turns[0]) for each in conversations]
        for key in reversed(keys):
            ready.want(key, time.monotonic() + 60 + key[0])
        ready.ask()
        assert asked == keys[:3]
        ready.take(keys[0])
        assert asked == keys[:4]
        ready.want(keys[40], time.monotonic())
        ready.ask()
        assert asked[-1] == keys[40]


def test_the_first_requests_are_those_that_are_due_first() -> None:
    """What is made before the clock starts is in the order of the times, not of the users, and of a bounded size."""
    conversations = tuple(reversed(talks(20)))
    made = Encoder(plan(), {})
    first = first_requests(conversations, made, user_header=False, held_bytes=1000)
    assert [user for user, _ in first] == list(range(1, len(first) + 1))
    assert 1000 <= sum(map(len, first.values())) < 1000 + max(map(len, first.values()))
    real = (Conversation(9, conversations[0].turns, answers_return=True),)
    assert first_requests(real, made, user_header=False) == {}


def killed(ready: Ahead) -> None:
    """End the maker as a machine without memory does."""
    os.kill(ready._maker, signal.SIGKILL)


@pytest.mark.parametrize("end", [killed, lambda _: None], ids=["killed", "alive"])
def test_without_the_maker_requests_are_made_on_the_spot(end: Callable[[Ahead], None]) -> None:
    """A maker that is gone costs time, and no request."""
    conversations = talks(30)
    made = Encoder(plan(), {})
    with Ahead(conversations, made, {}, user_header=False) as ready:
        maker = ready._maker
        end(ready)
        for each in conversations:
            assert ready.take(key_of(each.user, each.turns[0])) == made.encode((), each.turns[0], None)
    assert ready._maker == 0
    with pytest.raises(ProcessLookupError):
        os.kill(maker, 0)


def test_a_maker_that_fails_costs_no_request() -> None:
    """What the maker cannot make is tried where it is sent, so that its error is seen there."""

    def broken(*_: object) -> str:
        raise ValueError("no such text")

    conversations = (Conversation(1, (Turn(1, 0.0, (Message("user", (LateText(broken, 3, ()),)),), 3),)),)
    with (
        Ahead(conversations, Encoder(plan(), {}), {}, user_header=False) as ready,
        pytest.raises(ValueError, match="no such text"),
    ):
        ready.take(key_of(1, conversations[0].turns[0]))


def test_numbers_that_are_there_twice() -> None:
    """Conversations of one user, and a turn that stands in two of them, are each sent what they are."""
    once = talks(3, rounds=2)
    conversations = (*once, *(Conversation(1, each.turns) for each in once))
    made = Encoder(plan(), {})
    first = first_requests(conversations, made, user_header=True, held_bytes=900)
    with Ahead(conversations, made, first, user_header=True) as ready:
        for each in conversations:
            for turn in each.turns:
                assert ready.take(key_of(each.user, turn)) == made.encode((), turn, each.user)


def test_a_script_of_late_texts_travels(tmp_path: Path) -> None:
    """What is made when it is needed survives the way to the load process, small, and is made there."""
    workload = plan().workload
    script = Script(talks(20, words=5000), concurrency=3)
    prepared = Prepared.of(workload, script, context_tokens=9, file=tmp_path / "script")
    found = prepared.script(9, None)
    assert (tmp_path / "script").stat().st_size < 50_000
    assert found.concurrency == 3
    texts = [[turn.messages[0].text for turn in c.turns] for c in script.conversations]
    assert [[turn.messages[0].text for turn in c.turns] for c in found.conversations] == texts


def test_encoded_texts_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts that came last are kept, and the memory for them is bounded."""
    monkeypatch.setattr(encoder, "_KEPT_BYTES", 1000)
    made = Encoder(plan(), {})
    late = [TEXTS.late(40, n) for n in range(20)]
    for each in late:
        made.encode((), Turn(1, 0.0, (message("user", late[0], each),), 3), None)
    assert sum(map(len, made._late.values())) == made._late_bytes <= 1000
    assert late[0] in made._late
    assert late[19] in made._late
    assert late[1] not in made._late


class Wire:
    """Stands in for the client: says when each request is fetched."""

    def __init__(self) -> None:
        self.submitted: list[Any] = []

    def submit(self, exchange: Any) -> None:
        """Note it."""
        self.submitted.append(exchange)

    def run(self) -> None:
        """Send all in the order in which they are due, and answer none."""
        for exchange in sorted(self.submitted, key=lambda each: each.due_s):
            exchange.payload = exchange.fetch()


def test_the_sending_loop_encodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests of a script that is known beforehand come from the maker, and those with real answers do not."""
    conversations = talks(12, words=400)
    made = Encoder(plan(), {})
    expected = [made.encode((), c.turns[0], None) for c in conversations]
    wire = Wire()
    driver = Driver(plan(), made, cast("Any", wire), user_header=False)
    pid, encode = os.getpid(), Encoder.encode

    def elsewhere(self: Encoder, *rest: Any) -> bytes:
        assert os.getpid() != pid, "the sending process encoded a request"
        return encode(self, *rest)

    monkeypatch.setattr(Encoder, "encode", elsewhere)
    driver.run(conversations, time.monotonic)
    assert [each.payload for each in wire.submitted] == expected
