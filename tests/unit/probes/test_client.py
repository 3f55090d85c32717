"""The client of the probes against a server whose behaviour the test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pytest_kvcache.probes import client
from pytest_kvcache.probes.answers import compare
from pytest_kvcache.probes.client import PairClient
from pytest_kvcache.probes.posting import ProbeError
from pytest_kvcache.probes.sentinels import Sentinel
from pytest_kvcache.workload.tokens import message

Says = Callable[[str, int], str]

L1_STORED = "lmcache_mp_l1_write_chunks_total"


@pytest.fixture
def says() -> Iterator[Callable[[Says], PairClient]]:
    """Start a server that answers what a function of path and number of the request says; give a client of it."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Says) -> PairClient:
        count = iter(range(10**6))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                text = answer(self.path, next(count)).encode()
                self.send_response(404 if text == b"404" else 400 if b"BadRequest" in text else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        metrics = {"vllm-0": f"{url}/metrics", "lmcache-0": f"{url}/lm/metrics"}
        return PairClient({"vllm-0": url}, metrics, "m", 128, {})

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_a_reset_is_repeated_until_it_did_something(says: Callable[[Says], PairClient]) -> None:
    """The endpoint answers 200 with success false while blocks are held: the body is read and the reset sent again."""
    asked: list[str] = []

    def answer(path: str, number: int) -> str:
        asked.append(path)
        return '{"success": %s}' % ("true" if number == 2 else "false")

    says(answer).reset_device("vllm-0")
    assert asked == ["/reset_prefix_cache"] * 3


def test_a_reset_that_says_nothing(says: Callable[[Says], PairClient]) -> None:
    """A vLLM before 0.26 answers without a word: the reset is sent for a while, and believed then."""
    asked: list[str] = []

    def answer(path: str, _: int) -> str:
        asked.append(path)
        return ""

    says(answer).reset_device("vllm-0")
    assert asked == ["/reset_prefix_cache"] * client._UNSAID_RESETS


def test_a_reset_that_never_works(says: Callable[[Says], PairClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while a cache that is still held is told as such."""
    monkeypatch.setattr(client, "_DRAIN_S", 0.1)
    with pytest.raises(ProbeError, match="vllm-0: its prefix cache is still held after"):
        says(lambda *_: '{"success": false}').reset_device("vllm-0")


def test_a_server_without_resets(says: Callable[[Says], PairClient]) -> None:
    """A server that does not know the endpoint is named with what it answered."""
    with pytest.raises(ProbeError, match=r"vllm-0: HTTP 404 of http.*/reset_prefix_cache"):
        says(lambda *_: "404").reset_device("vllm-0")


def test_an_lmcache_that_does_not_clear(says: Callable[[Says], PairClient]) -> None:
    """A clear is believed only if its body says that L1 was cleared."""
    says(lambda *_: '{"status": "ok", "cleared": {"tier": "l1"}}').clear_l1("vllm-0")
    with pytest.raises(ProbeError, match="lmcache-0: did not empty its L1"):
        says(lambda *_: '{"status": "ok", "cleared": {}}').clear_l1("vllm-0")


def test_an_lmcache_before_0_5_1_is_cleared_by_its_own_call(says: Callable[[Says], PairClient]) -> None:
    """Where there is no /cache/clear, /clear-cache empties L1; it must say so, too."""
    asked: list[str] = []

    def answer(path: str, _: int) -> str:
        asked.append(path)
        return "404" if path.endswith("/cache/clear") else '{"status": "ok"}'

    says(answer).clear_l1("vllm-0")
    assert asked == ["/lm/cache/clear", "/lm/clear-cache"]
    with pytest.raises(ProbeError, match="did not empty its L1"):
        says(lambda path, _: "404" if path.endswith("/cache/clear") else '{"status": "busy"}').clear_l1("vllm-0")
    with pytest.raises(ProbeError, match="HTTP 404"):
        says(lambda *_: "404").clear_l1("vllm-0")


def stores(submitted: int, completed: int, chunks: int) -> str:
    """Return LMCache's counters of stores into the shared storage, eight chunks in each request."""
    prefix = "lmcache_mp_l2_store"
    return (
        f"vllm:num_requests_running 0\n{prefix}_submitted_requests_total {submitted}\n"
        f"{prefix}_completed_requests_total {completed}\n{prefix}_submitted_objects_chunks_total {8 * submitted}\n"
        f"{prefix}_completed_objects_chunks_total {chunks}\n"
    )


def test_a_drain_waits_for_stores(says: Callable[[Says], PairClient]) -> None:
    """A server is drained when what it computed is in the storage, also where no store was under way for a moment."""
    seen: list[str] = []

    def answer(_: str, number: int) -> str:
        seen.append([stores(0, 0, 0), stores(1, 0, 0), stores(1, 1, 8)][min(number // 2, 2)])
        return seen[-1]

    says(answer).drain("vllm-0", stored_chunks=8)
    assert len(set(seen)) == 3


def test_a_drain_ends_at_once_where_stores_fail(says: Callable[[Says], PairClient]) -> None:
    """A store that ended without its chunks is told at once, with how many were handed over."""
    with pytest.raises(ProbeError, match=r"of 8 chunks .* 0 are in the shared storage \(8 were handed") as told:
        says(lambda *_: stores(1, 1, 0)).drain("vllm-0", stored_chunks=8)
    assert told.value.todo.startswith("wrong bucket")


@pytest.mark.parametrize(
    ("in_l1", "says_what"), [("", "the connector is not loaded"), (f"{L1_STORED} 8\n", "it has no L2 adapter")]
)
def test_a_drain_without_a_store(
    says: Callable[[Says], PairClient], monkeypatch: pytest.MonkeyPatch, in_l1: str, says_what: str
) -> None:
    """Where nothing is ever stored, waiting ends after a grace, and says what is missing: connector or adapter."""
    monkeypatch.setattr(client, "_GRACE_S", 0.1)
    with pytest.raises(ProbeError, match=r"\(0 were handed to it\)") as told:
        says(lambda *_: stores(0, 0, 0) + in_l1).drain("vllm-0", stored_chunks=8)
    assert says_what in told.value.todo


def test_a_server_that_is_gone() -> None:
    """A server whose counters cannot be read is named."""
    gone = PairClient({"vllm-0": "http://127.0.0.1:9"}, {"vllm-0": "http://127.0.0.1:9/metrics"}, "m", 128, {})
    with pytest.raises(ProbeError, match="vllm-0: its counters cannot be read"):
        gone.counters("vllm-0")


def test_an_answer_that_vllm_cannot_write_down(says: Callable[[Says], PairClient]) -> None:
    """NaN among the log-probabilities is HTTP 400 of vLLM: an answer that differs, from where its KV came, no crash."""
    source, refusal = "vllm:prompt_tokens_by_source_total", "Out of range float values are not JSON compliant"

    def answer(path: str, number: int) -> str:
        if path.endswith("/completions"):
            return json.dumps({"error": {"message": refusal, "type": "BadRequestError"}})
        if "/lm/" in path:
            return f"lmcache_mp_lookups_requests_total {number}\n"
        return (
            f"vllm:prompt_tokens_total {100 * number}\n"
            f'{source}{{source="local_compute"}} {10 * number}\n'
            f'{source}{{source="external_kv_transfer"}} {90 * number}\n'
        )

    served = says(answer).ask("vllm-0", Sentinel("vllm-0", message("user", "hello")))
    assert served.answer.cached_tokens == served.tokens.cached > 0
    assert compare(served.answer, served.answer, tolerance=1).fault == "log-probabilities of token 1 are no numbers"
