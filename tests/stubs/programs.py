"""The stub programs: `programs.py NAME ARGS…` behaves, as far as the plugin can tell, like NAME."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from multiprocessing import get_context, shared_memory
from typing import Any

from aiohttp import ClientSession, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
EVENTS = {"Content-Type": "text/event-stream"}
ASKED = itertools.count()
#: Ways of a server to end under load.
ENDS: dict[str, Callable[[], None]] = {
    "die": lambda: os._exit(9),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
#: Prompt tokens by source, as vLLM counts them.
COUNTED = {"local_compute": 0, "local_cache_hit": 0, "external_kv_transfer": 0}
#: Seconds and number of what vLLM measures of each request.
TIMED = {"vllm:time_to_first_token_seconds": [0.0, 0], "vllm:lmcache_mp_lookup_duration_seconds": [0.0, 0]}


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the few options that matter; ignore the others."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int)
    parser.add_argument("--addr")
    parser.add_argument("--http-port", type=int)
    parser.add_argument("--metrics-addr", default="")
    parser.add_argument("--worker-urls", nargs="*", default=[])
    parser.add_argument("--response-role", default="assistant")
    parser.add_argument("--stub-ttft", type=float, default=0.005)
    # From the environment, a session is slower than its baseline and still comparable.
    parser.add_argument("--stub-lookup", type=float, default=float(os.environ.get("STUB_LOOKUP", "0")))
    parser.add_argument("--stub-itl", type=float, default=0.002)
    parser.add_argument("--stub-fail", default="")
    parser.add_argument("--stub-key", default="")
    parser.add_argument("--stub-boot", type=float, default=0.0)
    return parser.parse_known_args(argv)[0]


def note_times(args: argparse.Namespace) -> None:
    """Count the times of a request as vLLM does."""
    for name, seconds in zip(TIMED, (args.stub_lookup + args.stub_ttft, args.stub_lookup), strict=True):
        TIMED[name][0] += seconds
        TIMED[name][1] += 1


#: What a server prints after each answer that it has streamed to its end.
ANSWERED = "ANSWERED"


async def answer(request: web.Request, args: argparse.Namespace) -> web.StreamResponse:
    """Stream an answer, or give it at once, or fail in the way that `--stub-fail` names."""
    body = await request.json()
    if args.stub_key and request.headers.get("Authorization") != f"Bearer {args.stub_key}":
        return web.Response(status=401, text="no key")
    return await stream(request, body, args) if body.get("stream") else whole(body, args)


async def stream(request: web.Request, body: dict[str, Any], args: argparse.Namespace) -> web.StreamResponse:
    """Answer as a measured request is answered."""
    if args.stub_fail.isdigit():
        return web.Response(status=int(args.stub_fail), text="stub says no")
    if args.stub_fail in ENDS and next(ASKED) >= 6:
        ENDS[args.stub_fail]()
    response = web.StreamResponse(headers=EVENTS)
    await response.prepare(request)

    async def event(data: object) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        await response.write(f"data: {text}\n\n".encode())

    await event({"choices": [{"delta": {"role": args.response_role, "content": ""}}]})
    await asyncio.sleep(args.stub_lookup + args.stub_ttft)
    note_times(args)
    for i in range(body["max_tokens"]):
        if args.stub_fail == "malformed":
            await event("{not json")
        if args.stub_fail == "break" and i == 2:
            if request.transport is not None:
                request.transport.close()
            return response
        if args.stub_fail == "stall":
            await asyncio.sleep(3600)
        if args.stub_fail == "slow":
            await asyncio.sleep(0.3)
        if args.stub_fail != "empty":
            await event({"choices": [{"delta": {"content": " hi"}}]})
        await asyncio.sleep(args.stub_itl)
    words = count(body["messages"])
    details = {"cached_tokens": words // 2}
    COUNTED["local_compute"] += words - words // 2
    COUNTED["local_cache_hit"] += words // 2
    usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"], "prompt_tokens_details": details}
    if args.stub_fail != "no-usage":
        metrics = {"queue_time_ms": args.stub_lookup * 1e3, "time_to_first_token_ms": args.stub_ttft * 1e3}
        await event({"choices": [], "usage": usage, "metrics": metrics})
    if args.stub_fail != "no-done":
        await event("[DONE]")
    print(ANSWERED, flush=True)
    return response


#: Prompts of whole answers that a server has seen since its device cache was emptied.
DEVICE: set[str] = set()


def whole(body: dict[str, Any], args: argparse.Namespace) -> web.Response:
    """Answer at once, as a server with a device cache and nothing else does.

    With `--stub-fail corrupt` it answers otherwise from the cache than it does by computing.
    """
    prompt = json.dumps(body["messages"])
    words = count(body["messages"])
    seen = prompt in DEVICE
    DEVICE.add(prompt)
    cached = words - 1 if seen else 0
    COUNTED["local_compute"] += words - cached
    COUNTED["local_cache_hit"] += cached
    wrong = seen and args.stub_fail == "corrupt"
    tokens = [
        {"token": name, "logprob": -0.1, "top_logprobs": [{"token": name, "logprob": -0.1}]}
        for name in [f"token_id:{7 if wrong else 300}"] * body["max_tokens"]
    ]
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"], **details}
    return web.json_response({"choices": [{"logprobs": {"content": tokens}}], "usage": usage})


async def reset(_: web.Request) -> web.Response:
    """Answer as vLLM's /reset_prefix_cache does."""
    DEVICE.clear()
    return web.json_response({"success": True})


async def clear(request: web.Request) -> web.Response:
    """Answer as LMCache's /cache/clear does."""
    return web.json_response({"status": "ok", "cleared": {"tier": (await request.json())["tier"]}})


#: The stub's tokenizer: words between spaces are one token each, a chat has some of its own, as templates do.
VOCABULARY = ["".join(letters) for letters in itertools.product("bcdfg", "aeiou", "klmnp", "aeiou")]
PER_CHAT, PER_MESSAGE = 2, 3


def count(messages: list[dict[str, str]]) -> int:
    """Return the length of a chat prompt in tokens."""
    return PER_CHAT + sum(PER_MESSAGE + len(m["content"].split()) for m in messages)


async def tokenize(request: web.Request) -> web.Response:
    """Answer as vLLM's /tokenize does."""
    body = await request.json()
    if "messages" in body:
        return web.json_response({"count": count(body["messages"]), "tokens": [], "max_model_len": 100000})
    words = body["prompt"].split() or [body["prompt"]]
    return web.json_response({"count": len(words), "tokens": [1] * len(words), "max_model_len": 100000})


async def detokenize(request: web.Request) -> web.Response:
    """Answer as vLLM's /detokenize does: token 1 is a line end, 300 and more are words."""
    tokens = (await request.json())["tokens"]
    if max(tokens) >= 300 + len(VOCABULARY) * 4:
        return web.Response(status=400, text="no such token")
    text = ("\n" if t == 1 else f" {VOCABULARY[(t - 300) % len(VOCABULARY)]}" for t in tokens)
    return web.json_response({"prompt": "".join(text)})


async def forward(request: web.Request, workers: itertools.cycle[str]) -> web.StreamResponse:
    """Pass a request on to the next worker."""
    body = await request.read()
    async with ClientSession() as session, session.post(next(workers) + request.path, data=body) as upstream:
        response = web.StreamResponse(status=upstream.status, headers=EVENTS)
        await response.prepare(request)
        async for piece in upstream.content.iter_any():
            await response.write(piece)
        return response


#: What a stub that answers no prompts counts: LMCache or rclone.
ELSEWHERE = "lmcache_mp_stub_total 1.0\nrclone_bytes_transferred_total 0\n"


def serve(*ports: int, handler: Handler | None = None) -> None:
    """Answer health checks, metrics and, with `handler`, chat completions at 127.0.0.1 on each of `ports`."""
    app = web.Application(client_max_size=2**30)

    async def ok(_: web.Request) -> web.Response:
        lines = [f'vllm:prompt_tokens_by_source_total{{source="{k}"}} {v}\n' for k, v in COUNTED.items()]
        lines += [f"{k}_sum {seconds}\n{k}_count {count}\n" for k, (seconds, count) in TIMED.items()]
        lines.append(f"vllm:prompt_tokens_total {sum(COUNTED.values())}\n")
        return web.Response(text="".join(lines) if handler is not None else ELSEWHERE)

    for path in ("/health", "/healthcheck", "/metrics", "/"):
        app.router.add_get(path, ok)
    if handler is not None:
        app.router.add_post("/v1/chat/completions", handler)
        app.router.add_post("/tokenize", tokenize)
        app.router.add_post("/detokenize", detokenize)
        app.router.add_post("/reset_prefix_cache", reset)
    app.router.add_post("/cache/clear", clear)
    listening = [socket.create_server(("127.0.0.1", port)) for port in ports]
    web.run_app(app, sock=listening, print=None, handle_signals=True, shutdown_timeout=0.2)


def main(name: str, argv: list[str]) -> None:
    """Be the program `name`."""
    args = parse(argv)
    if name == "vllm":
        if args.stub_fail == "boot":
            print("(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] EngineCore failed to start.")
            print("(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] ValueError: the first cause", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        # Like vLLM: a child that does the work, and shared memory between the two that a kill leaves behind.
        segment = shared_memory.SharedMemory(create=True, size=4096)
        lock = get_context("spawn").Lock()
        print(f"SHM /dev/shm/{segment.name} /dev/shm/sem.{lock._semlock.name.lstrip('/')}", flush=True)  # type: ignore[attr-defined]
        code = "import sys, time, mmap; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); time.sleep(3600)"
        child = subprocess.Popen([sys.executable, "-c", code, f"/dev/shm/{segment.name}"])
        if args.stub_boot:
            asyncio.run(asyncio.sleep(args.stub_boot))
        try:
            serve(args.port, handler=lambda request: answer(request, args))
        finally:
            child.terminate()
            segment.close()
            segment.unlink()
    elif name == "vllm-router":
        workers = itertools.cycle(args.worker_urls)
        serve(args.port, handler=lambda request: forward(request, workers))
    else:
        addresses = [f":{args.http_port}"] if args.http_port else [args.addr, args.metrics_addr]
        serve(*(int(address.rpartition(":")[2]) for address in addresses))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
