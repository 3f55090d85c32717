"""Counters of an LMCache inside vLLM, shown to the cluster by a relay on its node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pytest_kvcache.probes.client import PairClient
from pytest_kvcache.serving.nodes.guard import KEY
from pytest_kvcache.serving.nodes.relay import _Server as Relay
from pytest_kvcache.telemetry import internal_api
from pytest_kvcache.telemetry.prometheus import scrape, scrape_all
from tests.unit.test_internal_api import Server

SECRET = "planted-key-of-a-boot"


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Server]:
    """The internal API server of an LMCache."""
    with Server(tmp_path / "api_1") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def url(inside: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of its counters at a relay."""
    monkeypatch.setenv(KEY, SECRET)
    sockets = {"lmcache-0": internal_api.metrics_url(tmp_path / "api", 0)}
    with Relay("127.0.0.1", 0, sockets) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{relay.server_address[1]}{internal_api.RELAYED}lmcache-0/metrics"
        relay.shutdown()


def test_counters_are_those_of_the_worker(url: str) -> None:
    """The worker is asked to count before it is read, and what is read is what its socket says."""
    assert scrape(url)["lmcache:num_hit_tokens_total"] == 512


def test_they_are_counted_once(url: str) -> None:
    """The endpoint of vLLM has the same counters: beside a relay they are left out there, as beside a socket."""
    found = scrape_all({"lmcache-0": url, "vllm-0": url.replace(internal_api.RELAYED, "/elsewhere/")})
    assert found["lmcache-0"]["lmcache:num_hit_tokens_total"] == 512
    assert "lmcache:num_hit_tokens_total" not in found["vllm-0"]


def test_emptying_needs_the_key(url: str, inside: Server) -> None:
    """L1 is emptied for who has the key and asks on the node itself; a missing worker is an error, no silence."""
    clear = f"{url.removesuffix('metrics')}clear"
    assert requests.post(clear, timeout=5).status_code == 401
    assert inside.cleared == ""
    given = {"Authorization": f"Bearer {SECRET}"}
    assert requests.post(clear, headers=given, timeout=5).json() == {"status": "ok"}
    assert inside.cleared == "/cache/clear?locations=LocalCPUBackend"
    assert requests.post(clear.replace("lmcache-0", "lmcache-7"), headers=given, timeout=5).status_code == 404
    assert requests.get(url.replace("lmcache-0", "lmcache-7"), timeout=5).status_code == 404


def test_probes_empty_it_from_the_node(url: str, inside: Server) -> None:
    """The probes have the node's agent send the request that empties L1, with the boot's key."""
    asked = []

    class Agent:
        """Sends requests from the node."""

        def post(self, component: str, url: str, body: object) -> tuple[int, str]:
            """Send one."""
            asked.append(component)
            answer = requests.post(url, json=body, headers={"Authorization": f"Bearer {SECRET}"}, timeout=5)
            return answer.status_code, answer.text

    client = PairClient({"vllm-0": "http://127.0.0.1:9"}, {"lmcache-0": url}, "m", 128, {}, f"Bearer {SECRET}", Agent())
    client.clear_l1("vllm-0")
    assert asked == ["lmcache-0"]
    assert inside.cleared == "/cache/clear?locations=LocalCPUBackend"


def test_a_dead_worker_is_no_counter(url: str, inside: Server, tmp_path: Path) -> None:
    """Where the worker is gone there are no counters, as of any server that does not answer."""
    (tmp_path / "api_1").unlink()
    assert scrape(url) == {}
