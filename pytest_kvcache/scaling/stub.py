"""A stand-in for a vLLM server that costs little: it streams the same tokens to each request, and has counters."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FIRST_S = 0.02


@contextmanager
def stub_server(*, chunks: int, gap_s: float, prompt_tokens: int) -> Iterator[str]:
    """Yield the URL of a stub in a process of its own.

    Args:
        chunks: Tokens of each answer, a chunk each.
        gap_s: Time between two of them (s).
        prompt_tokens: What it says that a prompt has.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, chunks, gap_s, prompt_tokens), daemon=True)
    process.start()
    theirs.close()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def metrics_page(server: int) -> bytes:
    """Return what a vLLM server with an LMCache inside has on its metrics page, in size and form.

    Args:
        server: Its number.
    """
    labels = f'engine="0",model_name="Qwen/Qwen3-8B",instance="{server}"'
    lines = ["# TYPE process_start_time_seconds gauge", "process_start_time_seconds 1.7e9"]
    for number in range(60):
        name = f"{'vllm' if number % 2 else 'lmcache'}:some_counter_of_the_engine_{number}_total"
        lines += [f"# HELP {name} What it counts, in a sentence of some words.", f"# TYPE {name} counter"]
        lines.append(f"{name}{{{labels}}} {number * 12345.0}")
    for number in range(24):
        name = f"vllm:some_histogram_of_the_engine_{number}_seconds"
        lines += [f"# HELP {name} What it measures, in a sentence.", f"# TYPE {name} histogram"]
        lines += [f'{name}_bucket{{{labels},le="{le}"}} {le}.0' for le in range(20)]
        lines += [f'{name}_bucket{{{labels},le="+Inf"}} 20.0', f"{name}_sum{{{labels}}} 5.0"]
        lines += [f"{name}_count{{{labels}}} 20.0"]
    return "\n".join([*lines, ""]).encode()


def _serve(end: Connection, chunks: int, gap_s: float, prompt_tokens: int) -> None:
    asyncio.run(_run(end, chunks, gap_s, prompt_tokens))


async def _run(end: Connection, chunks: int, gap_s: float, prompt_tokens: int) -> None:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": chunks}
    token = _chunk({"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]})
    last = _chunk({"choices": [], "usage": usage}) + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    page = metrics_page(0)
    loop = asyncio.get_running_loop()

    class Answers(asyncio.Protocol):
        """One connection."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection is one
            self._transport, self._received = transport, bytearray()

        def data_received(self, data: bytes) -> None:
            self._received += data
            head, end_, _ = self._received.partition(b"\r\n\r\n")
            if not end_:
                return
            if head.startswith(b"GET"):
                self._received.clear()
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)
                return
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self._received) < len(head) + 4 + size:
                return
            del self._received[: len(head) + 4 + size]
            loop.call_later(_FIRST_S, self._next, 0, loop.time() + _FIRST_S)

        def _next(self, number: int, due_s: float) -> None:
            if self._transport.is_closing():
                return
            self._transport.write((_HEAD if number == 0 else b"") + token + (last if number == chunks - 1 else b""))
            if number < chunks - 1:
                loop.call_at(due_s + gap_s, self._next, number + 1, due_s + gap_s)

    server = await loop.create_server(Answers, "127.0.0.1", 0, backlog=1024)
    end.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _chunk(values: object) -> bytes:
    return _framed(b"data: " + json.dumps(values).encode() + b"\n\n")


def _framed(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"
