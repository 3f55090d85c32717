"""The plugin's load processes, as a run has them, at one rate: modes exact and compat, and exact by a load node.

`clients.py` measures the client by itself, with answers decoded afterwards. A run has more to do meanwhile: it decodes
every answer, and in mode compat the next prompt has the answers before it. What the client adds to TTFT then is each
row's `residual_s`, since the server tells its own time to the first token as vLLM does.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from pytest_kvcache.load import records
from pytest_kvcache.load.children import Children, Share
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.nodes import coordinator
from pytest_kvcache.load.nodes.coordinator import LoadNodes
from pytest_kvcache.load.nodes.messages import KEY_ENV
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Conversation, Message, Script, Turn

#: Each user asks this often (s); the answer to the question before is there by then.
ROUND_S = 2.0
_QUESTION = "hi " * 30
_CONTEXT = "hi " * 2000


def send(mode: str, port: int, *, rate: float, seconds: float, start_s: float) -> list[RequestRecord]:
    """Send one load and return its rows.

    Args:
        mode: `exact`, `compat`, or `node` for what `exact` sends, sent by an agent of this machine.
        port: Port of the server on this machine.
        rate: Requests a second.
        seconds: How long new requests are sent.
        start_s: When the clock starts (CLOCK_MONOTONIC).
    """
    users = max(1, round(rate * ROUND_S))
    rounds = max(1, round(seconds / ROUND_S))
    workload = MultiRoundQa(
        mode="compat",  # which needs no tokenizer; whether answers return is said by the conversations below
        context_tokens=(1,),
        duration_s=seconds + ROUND_S,
        shared_prompt_tokens=1,
        answer_tokens=100,
        users=users,
        rounds=rounds,
        qps=rate,
    )
    answers_return = mode == "compat"
    conversations = tuple(
        Conversation(
            user,
            tuple(
                Turn(n + 1, user / rate + n * ROUND_S, _messages(n, answers_return=answers_return), 100)
                for n in range(rounds)
            ),
            answers_return,
        )
        for user in range(users)
    )
    script = Script(conversations)
    plan = LoadPlan(
        base_url=f"http://127.0.0.1:{port}/v1",
        model="stub",
        workload=workload,
        context_tokens=1,
        tokenizer_url=f"http://127.0.0.1:{port}",
        rows=Path("rows"),
        summary=Path("summary"),
    )
    if mode == "node":
        return _by_node(plan, script, start_s)
    encoder = Encoder(plan, {})
    encoder.prepare(turn for each in conversations for turn in each.turns)
    count = workload.worker_count(script)
    shares = [Share(plan, conversations[i::count], encoder, user_header=False) for i in range(count)]
    children = Children(shares, lambda _: None)
    children.begin(start_s)
    children.listen()
    return children.rows


def _by_node(plan: LoadPlan, script: Script, start_s: float) -> list[RequestRecord]:
    """Send a script from an agent, and return its rows on our clock."""
    key = secrets.token_hex(16)
    agent = subprocess.Popen(
        [sys.executable, "-m", "pytest_kvcache.cli", "load-node", "--listen", "127.0.0.1:0", "--once"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, KEY_ENV: key},
    )
    try:
        address = (agent.stdout.readline() if agent.stdout else "").split()[-1]
        with coordinator.connected([address], key.encode(), budget_s=0.001) as links:
            coordinator.hand_out(links, plan, script)
            links[0].know_clock(0.001)
            nodes = LoadNodes(links, plan, lambda _: None)
            nodes.begin(max(start_s, time.monotonic() + 1.0))
            nodes.listen()
            print(json.dumps(nodes.facts()[0]["clock"]), file=sys.stderr)
    finally:
        agent.terminate()
        agent.wait()
    return nodes.rows


def row(record: RequestRecord) -> dict[str, float] | None:
    """Return the errors of a row (ms); None for a request that was not answered."""
    if record.status != records.OK or record.residual_s is None:
        return None
    return {
        "ttft_error_ms": 1e3 * record.residual_s,
        "late_ms": 1e3 * ((record.actual_start_s or 0.0) - (record.due_s or 0.0)),
    }


def _messages(before: int, *, answers_return: bool) -> tuple[Message, ...]:
    """Return what a turn sends: its question, behind a prepared history where answers do not return."""
    first = Message("user", (_CONTEXT, _QUESTION))
    question = Message("user", (_QUESTION,))
    if answers_return:
        return (question if before else first,)
    return (first, *(each for _ in range(before) for each in (Message("assistant", (_QUESTION,)), question)))
