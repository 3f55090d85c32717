"""An HTTP server of the standard library: light enough that several start for each boot of a test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

EVENTS = "text/event-stream"
Handler = Callable[["Request"], None]
Refuses = Callable[[dict[str, Any]], "tuple[int, str] | None"]


class Server(ThreadingMixIn, TCPServer):
    """Serves each connection in a thread that does not keep the program alive.

    Args:
        port: To listen on.
        host: Address to listen on.
        refused: Why a request from a client, to this server, with a method, a path and headers is refused.
        pages: What a GET brings, by path.
        answers: What answers a POST, by path.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self,
        port: int,
        pages: Mapping[str, Callable[[], str]],
        answers: Mapping[str, Handler],
        *,
        host: str = "127.0.0.1",
        refused: Refuses = lambda _: None,
    ) -> None:
        self.pages, self.answers, self.refused = pages, answers, refused
        super().__init__((host, port), Request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Request(BaseHTTPRequestHandler):
    """A request, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    body = b""

    def log_message(self, *_: object) -> None:
        """Print no line a request."""

    def do_GET(self) -> None:
        """Answer with a page."""
        if refused := self.server.refused(self.scope()):
            return self.whole(refused[1], refused[0])
        page = self.server.pages.get(self.path)
        return self.whole(page() if page else "no such page", 200 if page else 404)

    def do_POST(self) -> None:
        """Have what was sent answered."""
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        if refused := self.server.refused(self.scope()):
            return self.whole(refused[1], refused[0])
        answer = self.server.answers.get(self.path)
        if answer is None:
            return self.whole("no such page", 404)
        return answer(self)

    def scope(self) -> dict[str, Any]:
        """Return the request as a middleware of vLLM sees it (ASGI)."""
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        own = self.connection.getsockname()
        return {
            "type": "http",
            "method": self.command,
            "path": self.path.partition("?")[0],
            "headers": headers,
            "client": self.client_address,
            "server": own,
        }

    def json(self) -> dict[str, Any]:
        """Return what was sent."""
        return dict(json.loads(self.body))

    def whole(self, body: str | dict[str, Any], status: int = 200) -> None:
        """Answer at once, with text or with JSON."""
        kind, text = ("text/plain", body) if isinstance(body, str) else ("application/json", json.dumps(body))
        data = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, status: int = 200) -> None:
        """Begin an answer in pieces."""
        self.send_response_only(status)
        self.send_header("Content-Type", EVENTS)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data: bytes = b"") -> None:
        """Send a piece; an empty one is the last."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, data: object) -> None:
        """Send an event of a stream."""
        self.piece(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())
