"""One client at one rate: `python -m benchmarks.client.clients NAME PORT RATE SECONDS START WORKER WORKERS LIMIT_S`.

Prints JSON: CPU seconds while it sent and received, how many requests were due, and for each that was over within
LIMIT_S of the last one's time its errors in ms. Answers are decoded afterwards, for every client but `exact`,
`compat` and `node`: these are the plugin's load processes at their whole work (`loads.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from benchmarks.client import loads
from pytest_kvcache.client import event_stream, framing, wire

BODY = json.dumps(
    {"model": "stub", "messages": [{"role": "user", "content": "hi " * 2000}], "max_tokens": 100, "stream": True}
).encode()
Event = tuple[float, bytes]
#: When it was due, when it was sent, what arrived.
Answer = tuple[float, float, Iterable[Event]]


def row(due_s: float, sent_s: float, events: Iterable[Event]) -> dict[str, float] | None:
    """Hold a client's stamps against the server's; None for an answer that is not whole."""
    stamps: list[float] = []
    sent_ns: list[int] = []
    read_ns = first_ns = 0
    for at, data in events:
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if "t" in event:
            stamps.append(at)
            sent_ns.append(event["t"])
            read_ns = event["r"]
        first_ns = event.get("first", first_ns)
    if not first_ns:
        return None
    ttft_error = (stamps[0] - sent_s) - (first_ns - read_ns) / 1e9
    gaps = [abs((b - a) - (d - c) / 1e9) for a, b, c, d in zip(stamps, stamps[1:], sent_ns, sent_ns[1:], strict=False)]
    return {
        "ttft_error_ms": 1e3 * ttft_error,
        "itl_error_ms": 1e3 * sum(gaps) / len(gaps),
        "late_ms": 1e3 * (sent_s - due_s),
    }


def ours(port: int, due: list[float], limit_s: float) -> list[Answer]:
    """Send with the plugin's own client."""
    payload = framing.request(f"127.0.0.1:{port}", "/v1/chat/completions", BODY)
    done: list[wire.Exchange] = []
    line = wire.Wire("127.0.0.1", port)
    for at in due:
        line.submit(wire.Exchange(payload, due_s=at, deadline_s=due[-1] + limit_s, done=done.append))
    line.run()
    line.close()
    return [(e.due_s, e.sent_s or 0.0, event_stream.events(e.pieces)) for e in done if not e.failed]


async def at_their_times(
    due: list[float], limit_s: float, ask: Callable[[], Awaitable[tuple[float, list[Event]]]]
) -> list[Answer]:
    """Start one task a request at its absolute time; return what is over in time."""
    answers: list[Answer] = []

    async def one(at: float) -> None:
        await asyncio.sleep(at - time.monotonic())
        with contextlib.suppress(OSError):
            answers.append((at, *await ask()))

    tasks = [asyncio.create_task(one(at)) for at in due]
    _, late = await asyncio.wait(tasks, timeout=due[-1] + limit_s - time.monotonic())
    for task in late:
        task.cancel()
    return list(answers)


async def with_aiohttp(port: int, due: list[float], limit_s: float) -> list[Answer]:
    """Send as a plain aiohttp client does."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> tuple[float, list[Event]]:
            events: list[Event] = []
            sent = time.monotonic()
            headers = {"Content-Type": "application/json"}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with session.post(url, data=BODY, headers=headers) as response:
                async for line in response.content:
                    if line.startswith(b"data:"):
                        events.append((time.monotonic(), line[5:].strip()))
            return sent, events

        return await at_their_times(due, limit_s, ask)


async def with_httpx(port: int, due: list[float], limit_s: float) -> list[Answer]:
    """Send as a plain httpx client does."""
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=None) as session:  # noqa: S113 - a stall shows in the table

        async def ask() -> tuple[float, list[Event]]:
            events: list[Event] = []
            sent = time.monotonic()
            headers = {"Content-Type": "application/json"}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with session.stream("POST", url, content=BODY, headers=headers) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        events.append((time.monotonic(), line[5:].strip().encode()))
            return sent, events

        return await at_their_times(due, limit_s, ask)


async def with_openai(port: int, due: list[float], limit_s: float) -> list[Answer]:
    """Send as the reference script does: AsyncOpenAI, streaming, one client for all."""
    import openai

    client = openai.AsyncOpenAI(api_key="EMPTY", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0, timeout=300)
    messages = json.loads(BODY)["messages"]

    async def ask() -> tuple[float, list[Event]]:
        events: list[Event] = []
        sent = time.monotonic()
        stream: AsyncIterator[openai.types.chat.ChatCompletionChunk] = await client.chat.completions.create(
            model="stub", messages=messages, max_tokens=100, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            events.append((time.monotonic(), json.dumps(chunk.model_extra or {}).encode()))
        return sent, events

    return await at_their_times(due, limit_s, ask)


def cpu_s() -> float:
    """Return the CPU time of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(argv: list[str]) -> None:
    """Run the client that was named."""
    name, port = argv[0], int(argv[1])
    rate, seconds, start, limit_s = float(argv[2]), float(argv[3]), float(argv[4]), float(argv[7])
    worker, workers = int(argv[5]), int(argv[6])
    due = [start + i / rate for i in range(int(rate * seconds)) if i % workers == worker]
    before_s = cpu_s()
    if name in {"exact", "compat", "node"}:
        sent = loads.send(name, port, rate=rate, seconds=seconds, start_s=start)
        errors = [each for record in sent if (each := loads.row(record)) is not None]
        print(json.dumps({"cpu_s": cpu_s() - before_s, "due": len(sent), "rows": errors}))
        return
    if name == "wire":
        answers = ours(port, due, limit_s)
    elif name == "aiohttp-uvloop":
        import uvloop

        answers = uvloop.run(with_aiohttp(port, due, limit_s))
    else:
        run = {"aiohttp": with_aiohttp, "httpx": with_httpx, "openai": with_openai}[name]
        answers = asyncio.run(run(port, due, limit_s))
    used_s = cpu_s() - before_s
    rows = [found for answer in answers if (found := row(*answer)) is not None]
    print(json.dumps({"cpu_s": used_s, "due": len(due), "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
