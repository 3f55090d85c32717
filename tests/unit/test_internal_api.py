"""Reading an LMCache that runs inside vLLM, from a stub of its internal API server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest
import requests

from pytest_kvcache.telemetry import internal_api, prometheus
from pytest_kvcache.telemetry.prometheus import STARTED, scrape, scrape_all

LABELS = 'model_name="m",role="worker",served_model_name="m",worker_id="0"'


class Server(ThreadingMixIn, UnixStreamServer):
    """Answers as LMCache's does; its sums reach `/metrics` only when it is told to count.

    Args:
        path: Of its socket.
        refuses: Whether `/run_script` is disabled.
    """

    daemon_threads = True

    def __init__(self, path: Path, *, refuses: bool = False) -> None:
        super().__init__(str(path), Handler)
        self.refuses = refuses
        self.pending, self.counted, self.cleared = 512, 0, ""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        """Show what was counted."""
        text = (
            "# TYPE lmcache:num_hit_tokens_total counter\n"
            f"lmcache:num_hit_tokens_total{{{LABELS}}} {self.server.counted}\n"
            f"# TYPE {STARTED} gauge\n{STARTED} 17\n"
        )
        self._answer(200, text)

    def do_POST(self) -> None:
        """Count."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.refuses:
            return self._answer(404, "The /run_script API is disabled.")
        assert "get_stats_and_clear()" in body
        self.server.counted, self.server.pending = self.server.counted + self.server.pending, 0
        return self._answer(200, "counted")

    def do_DELETE(self) -> None:
        """Clear."""
        self.server.cleared = self.path
        self._answer(200, "{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """Have no address."""
        return ""

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Return the beginning of the sockets' paths; it needs quoting."""
    return tmp_path / "a b%"


@pytest.fixture
def servers(prefix: Path) -> Iterator[list[Server]]:
    """Run the servers of two ranks, the second of which refuses to count."""
    made = [Server(Path(f"{prefix}_{rank + 1}"), refuses=bool(rank)) for rank in range(2)]
    for server in made:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def test_counters_are_those_of_this_moment(servers: list[Server], prefix: Path) -> None:
    """What LMCache has counted and not handed over yet is in a reading, and when its process was started."""
    counters = scrape(internal_api.metrics_url(prefix, 0))
    assert counters == {"lmcache:num_hit_tokens_total": 512, STARTED: 17}
    assert servers[0].pending == 0


def test_counters_that_may_be_old_are_no_reading(servers: list[Server], prefix: Path) -> None:
    """An LMCache that does not count when it is asked to has no reading, rather than an old one."""
    assert scrape(internal_api.metrics_url(prefix, 1)) == {}
    assert scrape(internal_api.metrics_url(prefix, 7)) == {}


def test_nothing_is_counted_twice(servers: list[Server], prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint of vLLM shows LMCache's counters too: they are those of the LMCache alone."""
    text = "# TYPE lmcache:num_hit_tokens_total counter\nlmcache:num_hit_tokens_total 500\n"
    answer = requests.Response()
    answer.status_code, answer._content = 200, (text + "# TYPE vllm:x gauge\nvllm:x 1\n").encode()
    monkeypatch.setattr(requests.Session, "get", lambda *_a, **_k: answer)
    urls = {"vllm-0": "http://127.0.0.1:1/metrics", "lmcache-0": internal_api.metrics_url(prefix, 0)}
    found = scrape_all(urls)
    assert found["vllm-0"] == {"vllm:x": 1}
    assert found["lmcache-0"]["lmcache:num_hit_tokens_total"] == 512
    assert "lmcache:num_hit_tokens_total" in scrape_all({"vllm-0": urls["vllm-0"]})["vllm-0"]


def test_vllm_is_asked_when_its_lmcache_has_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are handed over in files that vLLM's endpoint reads: none of the two is asked while the other answers."""
    order: list[tuple[str, str]] = []

    def scraped(url: str) -> dict[str, float]:
        kind = "lmcache" if internal_api.is_internal(url) else "vllm"
        order.append((kind, "asked"))
        time.sleep(0.05)
        order.append((kind, "answered"))
        return {}

    monkeypatch.setattr(prometheus, "scrape", scraped)
    urls = {f"vllm-{i}": f"http://127.0.0.1:{i}/metrics" for i in range(3)}
    scrape_all({**urls, **{f"lmcache-{i}": internal_api.metrics_url(Path(f"/s/{i}/api"), 0) for i in range(3)}})
    assert [kind for kind, _ in order] == ["lmcache"] * 6 + ["vllm"] * 6


def test_l1_is_cleared_and_nothing_else(servers: list[Server], prefix: Path) -> None:
    """Only CPU RAM is emptied: the shared storage keeps what it has."""
    internal_api.clear_l1(internal_api.metrics_url(prefix, 0))
    assert servers[0].cleared == "/cache/clear?locations=LocalCPUBackend"
