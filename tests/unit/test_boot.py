"""What a boot does while it waits."""

from __future__ import annotations

import http.server
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.pair import boot
from pytest_kvcache.serving.plan import ServingPlan

LOOKS = 12


class Server(http.server.ThreadingHTTPServer):
    """Hangs up, says that it is not ready, and is ready at its last look."""

    looks = 0


class Answer(http.server.BaseHTTPRequestHandler):
    """One answer of `Server`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Count, and answer."""
        assert isinstance(self.server, Server)
        self.server.looks += 1
        if self.server.looks < LOOKS and self.server.looks % 3 == 0:
            self.close_connection = True
            return
        self.send_response(200 if self.server.looks >= LOOKS else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that starts slowly."""
    with Server(("127.0.0.1", 0), Answer) as here:
        thread = threading.Thread(target=here.serve_forever)
        thread.start()
        yield here
        here.shutdown()
        thread.join()


@dataclass
class Started:
    """A component that runs on."""

    component: Component
    log: Path

    def exit_code(self) -> None:
        """Run on."""


class Starter:
    """Starts nothing."""

    def start(self, component: Component, logs: Path) -> Started:
        """Return its handle."""
        return Started(component, logs / "log")

    def stop(self, _: object) -> None:
        """End nothing."""


def test_no_finalizer_runs_between_two_looks(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal's handler raises while servers start is not lost, as it is inside a finalizer."""
    ran: list[int] = []
    finalizer = weakref.finalize.__call__

    def noted(self: Any, _: object = None) -> object:
        ran.append(server.looks)
        return finalizer(self)

    monkeypatch.setattr(weakref.finalize, "__call__", noted)
    component = Component("vllm-0", ("x",), "servers", ready_url=f"http://127.0.0.1:{server.server_port}/health")
    pair = boot(ServingPlan(TierPlan("gpu"), (component,), "", "", {}, {}), Starter(), tmp_path, timeout_s=20)
    assert [handle.component.name for handle in pair.handles] == ["vllm-0"]
    assert server.looks == LOOKS
    assert set(ran) <= {LOOKS}
