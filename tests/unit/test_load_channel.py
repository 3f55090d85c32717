"""The connection of coordinator and load node: both prove themselves, and nothing in between changes a message."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.load.driver import Progress
from pytest_kvcache.load.gathering import Told
from pytest_kvcache.load.nodes import channel as channels
from pytest_kvcache.load.nodes import messages
from pytest_kvcache.load.nodes.channel import Channel, ChannelClosedError
from pytest_kvcache.load.nodes.link import split_address
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Conversation, Message, Script, Turn

KEY = b"0123456789abcdef"


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def both(near: socket.socket, far: socket.socket, keys: tuple[bytes, bytes] = (KEY, KEY)) -> list[Channel | RunError]:
    """Open the channel at both ends side by side; return each side's, or its error."""
    found: list[Channel | RunError] = []

    def call() -> None:
        try:
            found.append(Channel(near, keys[0], calls=True))
        except RunError as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        other: Channel | RunError = Channel(far, keys[1], calls=False)
    except RunError as error:
        other = error
    thread.join()
    return [found[0], other]


def opened() -> tuple[Channel, Channel]:
    """Return both ends of an open channel."""
    near, far = both(*tcp_pair())
    assert isinstance(near, Channel)
    assert isinstance(far, Channel)
    return near, far


def test_messages_arrive_in_order_both_ways() -> None:
    """What one side sends the other receives, with the time at which it arrived."""
    near, far = opened()
    before = time.monotonic_ns()
    sent = near.send("a", b"one")
    near.send_json("b", {"two": 2})
    first, second = far.receive(), far.receive()
    assert (first.kind, first.body, second.json()) == ("a", b"one", {"two": 2})
    assert before <= sent <= first.at_ns <= time.monotonic_ns()
    far.send("c", b"x" * 3_000_000)
    assert len(near.receive().body) == 3_000_000
    near.close()
    with pytest.raises(ChannelClosedError):
        far.receive()
    far.close()


def test_another_key_is_refused_on_both_sides() -> None:
    """Neither side goes on with one that has another key, and neither key is in an error."""
    for found in both(*tcp_pair(), keys=(KEY, b"another key, long")):
        assert isinstance(found, RunError)
        assert "key" in str(found)
        assert KEY.decode() not in str(found)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\xff" * 64, b""])
def test_a_stranger_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Whatever a program that is none of ours says, the node's side ends with an error and waits no longer."""
    monkeypatch.setattr(channels, "_HANDSHAKE_S", 1.0)
    near, far = tcp_pair()
    with near:
        near.sendall(said)
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(RunError):
            Channel(far, KEY, calls=False)


def test_silence_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that opens a connection and says nothing is given up in time."""
    monkeypatch.setattr(channels, "_HANDSHAKE_S", 1.0)
    near, far = tcp_pair()
    with near, pytest.raises(RunError, match="nothing came"):
        Channel(far, KEY, calls=False)


@contextlib.contextmanager
def between(change: Callable[[bytes], bytes]) -> Iterator[tuple[Channel, Channel]]:
    """Yield a channel through somebody who changes what the calling side says once the channel is open."""
    near, middle = tcp_pair()
    other, far = tcp_pair()
    changes = threading.Event()

    def pass_on(source: socket.socket, target: socket.socket, alter: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(change(data) if alter and changes.is_set() else data)

    threads = [threading.Thread(target=pass_on, args=pair) for pair in ((middle, other, True), (other, middle, False))]
    for thread in threads:
        thread.start()
    with middle, other:
        a, b = both(near, far)
        assert isinstance(a, Channel)
        assert isinstance(b, Channel)
        changes.set()
        yield a, b
        a.close()
        b.close()
        for each in (middle, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data + data],
    ids=["a bit changed", "said twice"],
)
def test_what_somebody_changed_is_not_taken(change: Callable[[bytes], bytes]) -> None:
    """A message that was changed or repeated on the way ends the connection."""
    with between(change) as (near, far):
        near.send("a", b"send this")

        def read_two() -> None:
            far.receive()
            far.receive()

        with pytest.raises(ChannelClosedError):
            read_two()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b:1", ("a.b", 1)),
        ("[fd00::7]:7777", ("fd00::7", 7777)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("bücher:1", ("xn--bcher-kva", 1)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """Names, IPv4 and bracketed IPv6 addresses have a host and a port."""
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "host:\u0661", "a..b:1"]
)
def test_no_addresses(text: str) -> None:
    """What has no host or no port is refused, and shown."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(text)


@pytest.mark.parametrize("key", ["", "short", " " * 40])
def test_a_short_key_is_refused(key: str) -> None:
    """A key that can be guessed, or none, is refused before anything listens, and is in no error."""
    with pytest.raises(ConfigError) as found:
        messages.read_node_key("K", {"K": key})
    assert "short" not in str(found.value).replace("shorter", "")


TIMES = st.none() | st.floats(0, 1e4)
ROWS = st.builds(
    RequestRecord,
    user=st.integers(-5, 10**6),
    round=st.integers(0, 100),
    intended_start_s=st.floats(0, 1e4),
    due_s=TIMES,
    first_token_s=TIMES,
    prompt_tokens=st.none() | st.integers(0, 10**9),
    error=st.text(),
    server=st.text(),
    resent=st.booleans(),
    token_times_s=st.lists(st.floats(0, 1e4), max_size=5),
)


@given(rows=st.lists(ROWS, max_size=5), until_s=st.floats(0, 1e4) | st.just(float("inf")), sent=st.integers(0, 10**9))
def test_rows_are_the_same_on_the_other_side(rows: list[RequestRecord], until_s: float, sent: int) -> None:
    """Rows and progress that a node hands over are to the bit those that it had."""
    told = Told(Progress(sent, 1, 2, 0.5), rows, until_s)
    assert messages.unpack_told(messages.pack_told(told)) == told


@pytest.mark.parametrize("body", [b"", b"\0\0", b"\0\0\0\2{}[1]", b"\0\0\0\2[][]", b"\xff" * 20])
def test_what_are_no_rows_is_an_error(body: bytes) -> None:
    """A message of another shape is refused, and no row comes of it."""
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's error is one
        messages.unpack_rows(body)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"version": "0.0.9"}, "pytest-kvcache 0.0.9"),
        ({"python": "3.9.1"}, "Python 3.9.1"),
        ({"code": "0"}, "other code"),
        ({"version": None}, "None"),
    ],
)
def test_versions_that_differ(change: dict[str, object], expected: str) -> None:
    """Another release of the plugin or of Python, or other code of the same release, is named."""
    ours = messages.identity()
    assert expected in messages.difference(ours, {**ours, **change})
    assert bool(messages.difference(ours, {**ours, **change})) == bool(change)


def test_shares_have_each_conversation_once() -> None:
    """Shares of the nodes together are the script; concurrency is divided, and texts are shared within a share."""
    text = "shared " * 100
    conversations = tuple(
        Conversation(user, (Turn(1, float(user), (Message("user", (text, f"q{user}")),), 8),)) for user in range(11)
    )
    workload = MultiRoundQa(
        context_tokens=(9,), duration_s=5, shared_prompt_tokens=0, answer_tokens=8, users=11, rounds=2, qps=1
    )
    plan = LoadPlan(
        base_url="http://a/v1", model="m", workload=workload, context_tokens=9, tokenizer_url="http://a",
        nodes=("a:1", "b:2", "c:3"), rows=Path("r"), summary=Path("s"), metrics_urls={"vllm": "http://a/metrics"},
    )  # fmt: skip
    packed = [each.pack() for each in messages.shares(plan, Script(conversations, concurrency=7), 3)]
    found = [messages.NodeShare.unpack(each) for each in packed]
    assert sorted((c for each in found for c in each.conversations), key=lambda c: c.user) == list(conversations)
    assert [each.concurrency for each in found] == [3, 2, 2]
    assert max(map(len, packed)) < 2 * len(text) + 2000
    told = LoadPlan.model_validate_json(found[0].plan)
    assert (told.nodes, told.metrics_urls, told.workload.duration_s) == ((), {}, 5)
