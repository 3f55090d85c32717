"""What sending costs: the load processes of a run against a stub server, a load node and its clock, a whole script."""

from __future__ import annotations

import multiprocessing
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.load import records
from pytest_kvcache.load.ahead import first_requests
from pytest_kvcache.load.children import Children, Share
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.nodes import agent, coordinator
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.scaling.apart import Took, apart
from pytest_kvcache.scaling.point import Point
from pytest_kvcache.scaling.stub import stub_server
from pytest_kvcache.workload.script import Conversation, Message, Script, Turn

_GAP_S = 0.01


@dataclass(frozen=True)
class Sending:
    """What one load process did.

    Args:
        requests: Requests that were answered well, of all that were sent.
        failed: Those that were not.
        late_p99_s: How late requests left (p99).
        took_s: From the first request to the last answer.
    """

    requests: int
    failed: int
    late_p99_s: float
    took_s: float


def client_cost(point: Point, *, rate: float, seconds: float) -> Took[Sending]:
    """Return what the load process of a run takes for requests of a size, its sender and its maker included.

    Args:
        point: Says how long prompts and answers are.
        rate: Requests a second.
        seconds: For how long.
    """
    with stub_server(chunks=point.answer_tokens, gap_s=_GAP_S, prompt_tokens=1) as url:
        return apart(_send, point, url, rate, seconds)


def _send(point: Point, url: str, rate: float, seconds: float) -> Sending:
    workload = point.workload(mode="compat", duration_s=seconds + 60)
    shared = "word " * point.shared_tokens
    conversations = tuple(
        Conversation(
            user,
            (
                Turn(
                    1,
                    user / rate,
                    (Message("user", (shared, f"word{user} " * point.context_tokens)),),
                    point.answer_tokens,
                ),
            ),
        )
        for user in range(round(rate * seconds))
    )
    plan = _plan(workload_of=point, url=url).model_copy(update={"workload": workload})
    encoder = Encoder(plan, {})
    encoder.prepare(turn for each in conversations for turn in each.turns)
    first = first_requests(conversations, encoder, user_header=False)
    children = Children([Share(plan, conversations, encoder, False, first)], lambda _: None)
    start_s = time.monotonic() + 1.0
    children.begin(start_s)
    children.listen()
    done = [row for row in children.rows if row.status == records.OK]
    late = sorted((row.actual_start_s or 0.0) - (row.due_s or 0.0) for row in done)
    return Sending(
        len(done),
        len(children.rows) - len(done),
        late[int(0.99 * (len(late) - 1))] if late else float("nan"),
        time.monotonic() - start_s,
    )


def _plan(*, workload_of: Point, url: str) -> LoadPlan:
    return LoadPlan(
        base_url=f"{url}/v1",
        model="stub",
        workload=workload_of.workload(),
        context_tokens=workload_of.context_tokens,
        tokenizer_url=url,
        rows=Path("rows"),
        summary=Path("summary"),
    )


class Words:
    """A tokenizer of words, so that a script can be made without a server."""

    max_model_len: int | None = None

    def count(self, messages: Sequence[Message]) -> int:
        """Return the number of words, and some for the template."""
        return 5 + sum(4 + len(message.text.split()) for message in messages)

    def words(self) -> tuple[str, ...]:
        """Return words."""
        return tuple(f"{a}{b}er" for a in "bcdfghklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en"))


def script_cost(point: Point) -> Took[int]:
    """Return what making and encoding the whole script of a size takes; it has that many requests."""
    return apart(_make, point)


def _make(point: Point) -> int:
    plan = _plan(workload_of=point, url="http://127.0.0.1:1")
    script: Script = plan.workload.script(point.context_tokens, Words())
    encoder = Encoder(plan, {})
    for each in (script.warm_up, script.priming, *(user.turns for user in script.conversations)):
        encoder.prepare(each)
    return sum(len(user.turns) for user in script.conversations)


@dataclass(frozen=True)
class ClockCost:
    """What comparing the clock of a load node of this machine took.

    Args:
        worst_error_s: The largest offset that was found; the true one is zero.
        worst_uncertainty_s: The largest uncertainty.
        each_s: Time of one comparison.
    """

    worst_error_s: float
    worst_uncertainty_s: float
    each_s: float


def clock_cost(times: int = 20) -> ClockCost:
    """Start an agent on this machine, and compare its clock so many times as before a load."""
    return apart(_compare, times).found


def _compare(times: int) -> ClockCost:
    key = secrets.token_hex(16).encode()
    listener = agent.listen("127.0.0.1", 0)
    address = "{}:{}".format(*listener.getsockname())
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, key), daemon=False)
    process.start()
    listener.close()
    try:
        with coordinator.connected([address], key, budget_s=1.0) as (link,):
            began_s = time.monotonic()
            readings = [link.compare() for _ in range(times)]
            each_s = (time.monotonic() - began_s) / times
    finally:
        process.terminate()
        process.join()
    return ClockCost(
        max(abs(each.offset_ns) for each in readings) / 1e9, max(each.uncertainty_ns for each in readings) / 1e9, each_s
    )


def _serve(listener: socket.socket, key: bytes) -> None:
    assert threading.current_thread() is threading.main_thread()  # noqa: S101
    agent.serve(listener, key, lambda _: None)
