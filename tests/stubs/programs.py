"""The stub programs: `programs.py NAME ARGS…` behaves, as far as the plugin can tell, like NAME.

Each boot of a test starts several of them, so they import little: threads of the standard library serve.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from types import MappingProxyType
from typing import Any

if not __package__:  # run as a program
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(__file__))))  # noqa: PTH120 - light, see above

from tests.stubs.web import Handler, Refuses, Request, Server

ASKED = itertools.count()
#: Ways of a server to end under load.
ENDS: dict[str, Callable[[], None]] = {
    "die": lambda: os._exit(9),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
#: Prompt tokens by source, as vLLM counts them.
COUNTED = {"local_compute": 0, "local_cache_hit": 0, "external_kv_transfer": 0}
#: What is counted once an answer is over, and when the program began.
DONE = {"vllm:generation_tokens_total": 0, "vllm:request_success_total": 0}
STARTED = time.time()
#: Seconds and number of what vLLM measures of each request.
TIMED = {"vllm:time_to_first_token_seconds": [0.0, 0], "vllm:lmcache_mp_lookup_duration_seconds": [0.0, 0]}


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the few options that matter; ignore the others."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--middleware", default="")
    parser.add_argument("--addr")
    parser.add_argument("--http-port", type=int)
    parser.add_argument("--metrics-addr", default="")
    parser.add_argument("--cert", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--kv-events-config", default="{}")
    parser.add_argument("--kv-event-source", action="append", default=[])
    parser.add_argument("--worker-urls", nargs="*", default=[])
    parser.add_argument("--response-role", default="assistant")
    parser.add_argument("--stub-ttft", type=float, default=0.005)
    # From the environment, a session is slower than its baseline and still comparable.
    parser.add_argument("--stub-lookup", type=float, default=float(os.environ.get("STUB_LOOKUP", "0")))
    parser.add_argument("--stub-itl", type=float, default=0.002)
    parser.add_argument("--stub-fail", default="")
    # The most tokens of an answer, as of a model that ends it.
    parser.add_argument("--stub-answer", type=int, default=1 << 30)
    # Collect an answer before it is sent on, as some proxies do.
    parser.add_argument("--stub-buffers", action="store_true")
    parser.add_argument("--stub-key", default="")
    parser.add_argument("--stub-boot", type=float, default=0.0)
    return parser.parse_known_args(argv)[0]


#: Held while counters change.
LOCK = threading.Lock()
#: What a server prints after each answer that it has streamed to its end.
ANSWERED = "ANSWERED"


#: Paths of health checks and of counters.
READ = ("/health", "/healthcheck", "/metrics", "/")
#: What a stub that answers no prompts counts: LMCache or rclone.
ELSEWHERE = "lmcache_mp_stub_total 1.0\nrclone_bytes_transferred_total 0\n"


def counters() -> str:
    """Return what a server of prompts counts."""
    with LOCK:
        lines = [f'vllm:prompt_tokens_by_source_total{{source="{k}"}} {v}\n' for k, v in COUNTED.items()]
        lines += [f"{k}_sum {seconds}\n{k}_count {count}\n" for k, (seconds, count) in TIMED.items()]
        lines.append(f"vllm:prompt_tokens_total {sum(COUNTED.values())}\n")
        lines += [f"{name} {count}\n" for name, count in DONE.items()]
        lines.append(f"process_start_time_seconds {STARTED:.6f}\n")
    return "".join(lines)


CHAT = "/v1/chat/completions"
#: What the prompts have by which the latency of a balancer is measured.
SMALL = b'"content": "small request '
#: What a server of prompts says of itself: the model `stub`, and its version.
ABOUT = {
    "/v1/models": lambda: json.dumps({"object": "list", "data": [{"id": "stub", "max_model_len": 100000}]}),
    "/version": lambda: json.dumps({"version": os.environ.get("STUB_VERSION", "0.stub")}),
}


def answer(request: Request, args: argparse.Namespace) -> None:
    """Stream an answer, or give it at once, or fail in the way that `--stub-fail` names."""
    body = request.json()
    if SMALL in request.body:  # no stub fails before its load, by which the balancer's own latency is measured
        args = argparse.Namespace(**{**vars(args), "stub_fail": "", "stub_buffers": False})
    if args.stub_key and request.headers.get("Authorization") != f"Bearer {args.stub_key}":
        return request.whole("no key", 401)
    return stream(request, body, args) if body.get("stream") else whole(request, body, args)


def stream(request: Request, body: dict[str, Any], args: argparse.Namespace) -> None:
    """Answer as a measured request is answered."""
    if args.stub_fail.isdigit():
        return request.whole("stub says no", int(args.stub_fail))
    if args.stub_fail in ENDS and next(ASKED) >= 6:
        ENDS[args.stub_fail]()
    request.begin()
    request.event({"choices": [{"delta": {"role": args.response_role, "content": ""}}]})
    time.sleep(args.stub_lookup + args.stub_ttft)
    with LOCK:
        # The times of a request as vLLM counts them.
        for name, seconds in zip(TIMED, (args.stub_lookup + args.stub_ttft, args.stub_lookup), strict=True):
            TIMED[name][0] += seconds
            TIMED[name][1] += 1
    tokens = min(body["max_tokens"], args.stub_answer)
    held: list[object] = []
    send = held.append if args.stub_buffers else request.event
    for i in range(tokens):
        if args.stub_fail == "malformed":
            request.event("{not json")
        if args.stub_fail == "break" and i == 2:
            request.close_connection = True
            return None
        if args.stub_fail == "stall":
            time.sleep(3600)
        if args.stub_fail == "slow":
            time.sleep(0.3)
        if args.stub_fail != "empty":
            send({"choices": [{"delta": {"content": " hi"}}]})
        time.sleep(args.stub_itl)
    for event in held:
        request.event(event)
    words = count(body["messages"])
    details = {"cached_tokens": words // 2}
    with LOCK:
        COUNTED["local_compute"] += words - words // 2
        COUNTED["local_cache_hit"] += words // 2
        _count_done(tokens)
    usage = {"prompt_tokens": words, "completion_tokens": tokens, "prompt_tokens_details": details}
    if args.stub_fail != "no-usage":
        times = {"queue_time_ms": args.stub_lookup * 1e3, "time_to_first_token_ms": args.stub_ttft * 1e3}
        request.event({"choices": [], "usage": usage, "metrics": times})
    if args.stub_fail != "no-done":
        request.event("[DONE]")
    request.piece()
    return say_answered(request)


def say_answered(request: Request) -> None:
    """Print that a request of a load was answered."""
    if SMALL not in request.body:
        os.write(sys.stdout.fileno(), f"{ANSWERED}\n".encode())  # at once and whole, whatever other threads do


#: Prompts of whole answers that a server has seen since its device cache was emptied.
DEVICE: set[str] = set()


def whole(request: Request, body: dict[str, Any], args: argparse.Namespace) -> None:
    """Answer at once, as a server with a device cache and nothing else does.

    With `--stub-fail corrupt` it answers otherwise from the cache than it does by computing.
    """
    prompt = json.dumps(body["messages"])
    words = count(body["messages"])
    with LOCK:
        seen = prompt in DEVICE
        DEVICE.add(prompt)
        cached = words - 1 if seen else 0
        COUNTED["local_compute"] += words - cached
        COUNTED["local_cache_hit"] += cached
        _count_done(body["max_tokens"])
    wrong = seen and args.stub_fail == "corrupt"
    tokens = [
        {"token": name, "logprob": -0.1, "top_logprobs": [{"token": name, "logprob": -0.1}]}
        for name in [f"token_id:{7 if wrong else 300}"] * body["max_tokens"]
    ]
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"], **details}
    message = {"role": args.response_role, "content": " hi" * body["max_tokens"]}
    request.whole({"choices": [{"message": message, "logprobs": {"content": tokens}}], "usage": usage})


def _count_done(tokens: int) -> None:
    DONE["vllm:generation_tokens_total"] += tokens
    DONE["vllm:request_success_total"] += 1


def reset(request: Request) -> None:
    """Answer as vLLM's /reset_prefix_cache does."""
    DEVICE.clear()
    request.whole({"success": True})


def clear(request: Request) -> None:
    """Answer as LMCache's /cache/clear does."""
    request.whole({"status": "ok", "cleared": {"tier": request.json()["tier"]}})


#: The stub's tokenizer: words between spaces are one token each, a chat has some of its own, as templates do.
VOCABULARY = ["".join(letters) for letters in itertools.product("bcdfg", "aeiou", "klmnp", "aeiou")]
PER_CHAT, PER_MESSAGE = 2, 3


def count(messages: list[dict[str, str]]) -> int:
    """Return the length of a chat prompt in tokens."""
    return PER_CHAT + sum(PER_MESSAGE + len(m["content"].split()) for m in messages)


def tokenize(request: Request) -> None:
    """Answer as vLLM's /tokenize does."""
    body = request.json()
    if "messages" in body:
        return request.whole({"count": count(body["messages"]), "tokens": [], "max_model_len": 100000})
    words = body["prompt"].split() or [body["prompt"]]
    return request.whole({"count": len(words), "tokens": [1] * len(words), "max_model_len": 100000})


def detokenize(request: Request) -> None:
    """Answer as vLLM's /detokenize does: token 1 is a line end, 300 and more are words."""
    tokens = request.json()["tokens"]
    if max(tokens) >= 300 + len(VOCABULARY) * 4:
        return request.whole("no such token", 400)
    text = ("\n" if t == 1 else f" {VOCABULARY[(t - 300) % len(VOCABULARY)]}" for t in tokens)
    return request.whole({"prompt": "".join(text)})


def forward(request: Request, workers: itertools.cycle[str]) -> None:
    """Pass a request on to the next worker."""
    host = next(workers).removeprefix("http://")
    upstream = HTTPConnection(host)
    try:
        key = request.headers.get("Authorization")
        upstream.request("POST", request.path, request.body, {"Authorization": key} if key else {})
        answered = upstream.getresponse()
    except (OSError, HTTPException) as error:
        return request.whole(str(error), 500)
    request.begin(answered.status)
    try:
        while data := answered.read1():
            request.piece(data)
    except (OSError, HTTPException):
        request.close_connection = True  # in the middle of an answer: so does the router's
        return None
    finally:
        upstream.close()
    return request.piece()


def guarded(middleware: str) -> Refuses:
    """Return what the named middleware refuses, as vLLM would import it: from the folder that PYTHONPATH names."""
    if not middleware:
        return lambda _: None
    sys.path.insert(0, os.environ["PYTHONPATH"])
    module, _, name = middleware.rpartition(".")
    refusal: Refuses = getattr(importlib.import_module(module), name)(None).refusal
    return refusal


#: Beginning of the address of a Unix socket, as ZeroMQ has it.
IPC = "ipc://"
#: What a server tells of its blocks, and what a router prints of what it was told.
BLOCKS = "BLOCKS"


def publish(endpoint: str, role: str) -> None:
    """Tell everybody who connects with a socket whose blocks these are."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(endpoint.removeprefix(IPC))
        listening.listen()
        while True:
            with contextlib.suppress(OSError), listening.accept()[0] as told:
                told.sendall(f"{BLOCKS} {role}\n".encode())


def be_told(source: str) -> None:
    """Print what a server tells of its blocks."""
    host, _, port = source.partition("=tcp://")[2].rpartition(":")
    with socket.create_connection((host, int(port))) as connection, connection.makefile() as lines:
        print(lines.readline(), flush=True)


def serve(
    *addresses: str,
    posts: Mapping[str, Handler] = MappingProxyType({}),
    middleware: str = "",
    certificate: tuple[str, str] | None = None,
) -> None:
    """Answer health checks, metrics, LMCache's /cache/clear and `posts` at each HOST:PORT until SIGTERM or SIGINT.

    With a certificate the first of them is with TLS.
    """
    pages: dict[str, Callable[[], str]] = dict.fromkeys(READ, counters if posts else lambda: ELSEWHERE)
    if posts:
        pages |= ABOUT
    refused = guarded(middleware)
    answers = {"/cache/clear": clear, **posts}
    where = (address.rpartition(":") for address in addresses)
    servers = [Server(int(port), pages, answers, host=host, refused=refused) for host, _, port in where]
    if certificate is not None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        servers[0].socket = context.wrap_socket(servers[0].socket, server_side=True)

    # Waited for instead of handled: none is lost, and none cuts short what is done at the end.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait(ends)


def main(name: str, argv: list[str]) -> None:
    """Be the program `name`."""
    args = parse(argv)
    if name == "vllm":
        if args.stub_fail == "boot":
            print("(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] EngineCore failed to start.")
            print("(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] ValueError: the first cause", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        from multiprocessing import get_context, shared_memory

        # Like vLLM: a child that does the work, and shared memory between the two that a kill leaves behind.
        segment = shared_memory.SharedMemory(create=True, size=4096)
        lock = get_context("spawn").Lock()
        print(f"SHM /dev/shm/{segment.name} /dev/shm/sem.{lock._semlock.name.lstrip('/')}", flush=True)  # type: ignore[attr-defined]
        code = "import sys, time, mmap; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); time.sleep(3600)"
        child = subprocess.Popen([sys.executable, "-S", "-E", "-c", code, f"/dev/shm/{segment.name}"])
        time.sleep(args.stub_boot)
        posts: dict[str, Handler] = {"/tokenize": tokenize, "/detokenize": detokenize, "/reset_prefix_cache": reset}
        try:
            posts[CHAT] = lambda request: answer(request, args)
            if endpoint := json.loads(args.kv_events_config).get("endpoint"):
                threading.Thread(target=publish, args=(endpoint, args.response_role), daemon=True).start()
            serve(f"{args.host}:{args.port}", posts=posts, middleware=args.middleware)
        finally:
            child.terminate()
            segment.close()
            segment.unlink()
    elif name == "vllm-router":
        workers = itertools.cycle(args.worker_urls)
        paths = (CHAT, "/tokenize", "/detokenize", "/reset_prefix_cache")
        for source in args.kv_event_source:
            be_told(source)
        posts = dict.fromkeys(paths, lambda request: forward(request, workers))
        serve(f"{args.host}:{args.port}", posts=posts)
    elif args.http_port:
        serve(f"{args.host}:{args.http_port}")
    else:
        serve(args.addr, args.metrics_addr, certificate=(args.cert, args.key) if args.cert else None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
