"""The multi-round QA workload: users who come back with their whole history.

The behaviour is that of LMCache's `multi-round-qa.py` (see `schedule.py`); the code and the texts are not.
"""

from __future__ import annotations

import functools
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pytest_kvcache.workload import framing, prompts, records
from pytest_kvcache.workload.answers import settle
from pytest_kvcache.workload.plan import LoadPlan
from pytest_kvcache.workload.records import RequestRecord
from pytest_kvcache.workload.schedule import Turn, UserSchedule, schedule
from pytest_kvcache.workload.wire import Exchange, Wire

Message = dict[str, str]
#: Time to build the first prompts and open the first connections before the clock starts (s).
_LEAD_S = 0.3


@dataclass
class Outcome:
    """What a run brought.

    Args:
        rows: One a request that the schedule asked for, also those that were never sent.
        started_at: Wall clock at the start (s since the epoch).
        elapsed_s: From the start to the last answer.
        warmup_errors: What went wrong before the start.
    """

    rows: list[RequestRecord] = field(default_factory=list)
    started_at: float = 0.0
    elapsed_s: float = 0.0
    warmup_errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and what is common to all of them.

    Args:
        plan: Names the URL, the model and the length of answers.
        wire: To the server.
    """

    plan: LoadPlan
    wire: Wire

    def submit(self, messages: list[Message], due_s: float, done: Callable[[Exchange], None]) -> None:
        """Have a chat completion for `messages` sent at `due_s` (CLOCK_MONOTONIC).

        Nothing is retried: a failure is a result.
        """
        workload, url = self.plan.workload, urlsplit(self.plan.base_url)
        request: dict[str, Any] = {
            "model": self.plan.model,
            "messages": messages,
            "max_tokens": workload.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if workload.ignore_eos:
            request["ignore_eos"] = True
        payload = framing.request(url.netloc, f"{url.path}/chat/completions", json.dumps(request).encode())
        self.wire.submit(Exchange(payload, due_s, due_s + workload.request_timeout_s, done))


def connect(base_url: str) -> Wire:
    """Return a wire to the host of `base_url`."""
    url = urlsplit(base_url)
    secure = url.scheme == "https"
    tls = ssl.create_default_context() if secure else None
    return Wire(url.hostname or "", url.port or (443 if secure else 80), tls)


def run(plan: LoadPlan, outcome: Outcome, wire: Wire) -> None:
    """Carry out `plan` over `wire`; `outcome` is filled in as it goes, so that a stopped run keeps what it has."""
    endpoint = Endpoint(plan, wire)
    users = schedule(plan.workload, first_user=plan.first_user)
    outcome.warmup_errors = _warm_up(endpoint)
    start_s = time.monotonic() + _LEAD_S
    outcome.started_at = time.time() + _LEAD_S
    for user in users:
        _User(user, endpoint, start_s, outcome.rows).begin()
    wire.run()
    outcome.elapsed_s = time.monotonic() - start_s


def _warm_up(endpoint: Endpoint) -> list[str]:
    now = time.monotonic()
    rows = []
    for i in range(endpoint.plan.workload.warmup_requests):
        row = RequestRecord(user=0, round=i, intended_start_s=0.0)
        text = prompts.warmup_message(endpoint.plan.first_user + i)
        endpoint.submit([{"role": "user", "content": text}], now, functools.partial(_settle_warm_up, row, now))
        rows.append(row)
    endpoint.wire.run()
    return [f"{row.status}: {row.error}" for row in rows if row.status != records.OK]


def _settle_warm_up(row: RequestRecord, start_s: float, exchange: Exchange) -> None:
    settle(exchange, row, start_s=start_s)


class _User:
    """One user's session: its next question is sent when it is due, and not before the last answer is there."""

    def __init__(self, user: UserSchedule, endpoint: Endpoint, start_s: float, rows: list[RequestRecord]) -> None:
        self._user = user
        self._endpoint = endpoint
        self._start_s = start_s
        self._history: list[Message] = []
        self._turns = iter(user.turns)
        self._rows = {t: RequestRecord(user=user.user, round=t.question, intended_start_s=t.at_s) for t in user.turns}
        rows.extend(self._rows.values())

    def begin(self) -> None:
        """Have the next turn sent, or all that are left marked as never sent once the run's time is over."""
        plan = self._endpoint.plan
        for turn in self._turns:
            # Prompts are built and encoded as soon as they can be, never when they are due.
            due_s = max(self._start_s + turn.at_s, time.monotonic())
            if due_s - self._start_s < plan.workload.duration_s:
                message: Message = {"role": "user", "content": self._question(turn)}
                done = self._answered(turn, message)
                self._endpoint.submit([*self._history, message], due_s, done)
                return
            self._rows[turn].error = "the answer before it came after the end of the run"

    def _answered(self, turn: Turn, message: Message) -> Callable[[Exchange], None]:
        def done(exchange: Exchange) -> None:
            record = self._rows[turn]
            answer = settle(exchange, record, start_s=self._start_s)
            if record.status == records.OK:
                self._history += [message, {"role": "assistant", "content": answer}]
            if record.status not in {records.CANCELLED, records.NOT_SENT}:
                self.begin()

        return done

    def _question(self, turn: Turn) -> str:
        if self._history:
            return prompts.next_question(turn.question)
        workload = self._endpoint.plan.workload
        return prompts.first_message(
            self._user.user,
            shared_tokens=workload.shared_prompt_tokens,
            context_tokens=self._endpoint.plan.context_tokens,
            question=turn.question,
        )
