"""Who may ask what of a vLLM server that listens beyond its own machine: a middleware inside the server.

The launcher copies this file to the node and names it in `--middleware`, so it imports the standard library alone.
It takes no part in an answer: a request that passes goes on to vLLM as it came.

- Health, counters and load may be read by all of the cluster: the router and the load process read them without a key.
- Prompts, answers and the tokenizer need the run's key. vLLM's own check of keys leaves out `/tokenize` and others.
- All else, the endpoints of the developer mode (`VLLM_SERVER_DEV_MODE`) among it, needs the key and serves nobody
  beyond the node: the connection must come from the address that it goes to. The kernel drops packets from elsewhere
  that carry an address of its own. `X-Forwarded-For` cannot help a stranger, since uvicorn believes it from loopback
  alone (`FORWARDED_ALLOW_IPS`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

KEY = "VLLM_API_KEY"
#: Paths that may be read without a key, by all of the cluster.
READ = frozenset({"/health", "/metrics", "/load", "/get_load"})
#: Paths, and beginnings of paths, that the run's key opens to all of the cluster.
SERVED = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize")

Scope = Mapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class Guard:
    """The middleware (ASGI 3).

    Args:
        app: What answers requests that may pass.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        key = os.environ.get(KEY, "")
        if not key:
            raise RuntimeError(f"{KEY} is not set: this server must not listen beyond its machine without a key")
        self._key = _digest(f"Bearer {key}".encode())

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        refused = self.refusal(scope) if scope["type"] in {"http", "websocket"} else None
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send, *refused)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and reason with which a request is refused, None where it may pass."""
        path = str(scope["path"])
        if scope["type"] == "http" and scope["method"] in {"GET", "HEAD"} and path in READ:
            return None
        if not self._authorized(scope["headers"]):
            return 401, "this server wants the run's API key"
        if path not in SERVED and not _from_here(scope):
            return 403, "this endpoint serves nobody beyond its own machine"
        return None

    def _authorized(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        return len(given) == 1 and secrets.compare_digest(_digest(given[0]), self._key)


def _from_here(scope: Scope) -> bool:
    client, server = scope.get("client"), scope.get("server")
    return bool(client and server and client[0] == server[0])


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


async def _refuse(send: Any, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
