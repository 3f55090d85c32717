"""The multi-round QA workload: users who come back with their whole history.

The behaviour is that of LMCache's `multi-round-qa.py` (see `schedule.py`); the code and the texts are not.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from pytest_kvcache.workload import prompts, records
from pytest_kvcache.workload.client import Client, Endpoint, Message
from pytest_kvcache.workload.plan import LoadPlan
from pytest_kvcache.workload.records import RequestRecord
from pytest_kvcache.workload.schedule import Turn, UserSchedule, schedule


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


async def run(plan: LoadPlan, outcome: Outcome) -> None:
    """Carry out `plan`; `outcome` is filled in as it goes, so that a cancelled run keeps what it has."""
    workload = plan.workload
    endpoint = Endpoint(
        base_url=plan.base_url,
        model=plan.model,
        answer_tokens=workload.answer_tokens,
        ignore_eos=workload.ignore_eos,
        timeout_s=workload.request_timeout_s,
    )
    users = schedule(workload, first_user=plan.first_user)
    loop = asyncio.get_running_loop()
    # Its own deadline is the client's; aiohttp's default of five minutes a request would be a second one.
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        outcome.warmup_errors = await _warm_up(session, endpoint, workload.warmup_requests, plan.first_user)
        start = loop.time()
        outcome.started_at = time.time()
        client = Client(session, endpoint, start)
        try:
            async with asyncio.TaskGroup() as group:
                for user in users:
                    group.create_task(_user(user, plan, client, start, outcome.rows))
        finally:
            outcome.elapsed_s = loop.time() - start


async def _warm_up(session: aiohttp.ClientSession, endpoint: Endpoint, count: int, first_user: int) -> list[str]:
    client = Client(session, endpoint, asyncio.get_running_loop().time())
    rows = [RequestRecord(user=0, round=i, intended_start_s=0.0) for i in range(count)]
    texts = [prompts.warmup_message(first_user + i) for i in range(count)]
    await asyncio.gather(*(client.ask([{"role": "user", "content": t}], r) for t, r in zip(texts, rows, strict=True)))
    return [f"{row.status}: {row.error}" for row in rows if row.status != records.OK]


async def _user(user: UserSchedule, plan: LoadPlan, client: Client, start: float, rows: list[RequestRecord]) -> None:
    history: list[Message] = []
    mine = {t: RequestRecord(user=user.user, round=t.question, intended_start_s=t.at_s) for t in user.turns}
    rows.extend(mine.values())
    loop = asyncio.get_running_loop()
    for turn, record in mine.items():
        await asyncio.sleep(max(0.0, start + turn.at_s - loop.time()))
        if loop.time() - start >= plan.workload.duration_s:
            record.error = "the answer before it came after the end of the run"
            continue
        message: Message = {"role": "user", "content": _question(user.user, turn, plan, first=not history)}
        answer = await client.ask([*history, message], record)
        if record.status == records.OK:
            history += [message, {"role": "assistant", "content": answer}]


def _question(user: int, turn: Turn, plan: LoadPlan, *, first: bool) -> str:
    if not first:
        return prompts.next_question(turn.question)
    return prompts.first_message(
        user,
        shared_tokens=plan.workload.shared_prompt_tokens,
        context_tokens=plan.context_tokens,
        question=turn.question,
    )
