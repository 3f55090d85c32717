"""What a balancer adds to a small request, from pairs of requests."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import RunError
from pytest_kvcache.probes import balancer_latency
from pytest_kvcache.probes.balancer_latency import PAIRS_PER_SERVER, latency, measure
from pytest_kvcache.runs.ports import free_ports
from tests.stubs.server import stub_server

TIMES = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=60)


@given(TIMES)
def test_the_median_of_pairs_lies_in_its_interval(pairs: list[tuple[float, float]]) -> None:
    """The latency is the median of the differences, between two of them, and the interval widens with no assumption."""
    through, direct = [a for a, _ in pairs], [b for _, b in pairs]
    found = latency(through, direct, {"vllm-0": len(pairs)})
    differences = sorted(a - b for a, b in pairs)
    assert found.median_s == statistics.median(differences)
    assert found.low_s <= found.median_s <= found.high_s
    assert {found.low_s, found.high_s} <= set(differences)
    assert found.pairs == len(pairs)
    assert found.facts()["servers"] == {"vllm-0": len(pairs)}


def test_the_interval_is_that_of_the_ranks() -> None:
    """Of 24 pairs the 95 % interval of the median goes from the 7th to the 18th (binomial tables)."""
    found = latency([float(n) for n in range(24)], [0.0] * 24, {})
    assert (found.low_s, found.high_s) == (6.0, 17.0)


def test_it_is_measured_against_the_server_that_answered(tmp_path: Path) -> None:
    """Both servers are asked directly as often as they answered through the balancer; its own time is what is left."""
    role = ("--response-role", "assistant@vllm-0")
    with stub_server(tmp_path, *role, "--stub-ttft", "0.03") as slow, stub_server(tmp_path, *role) as quick:
        # The slow server stands in for a balancer that takes 25 ms more.
        found = measure(f"{slow}/v1", {"vllm-0": quick}, model="m", extra_body={"x": 1})
        none = measure(f"{quick}/v1", {"vllm-0": quick}, model="m", extra_body={})
    assert found.servers == {"vllm-0": PAIRS_PER_SERVER}
    assert found.median_s > none.median_s + 0.015
    assert "ms for a small request" in found.line
    assert f"median of {PAIRS_PER_SERVER} pairs" in found.line


def test_a_balancer_in_front_of_other_servers_is_found_out(tmp_path: Path) -> None:
    """An answer of a server that is none of the pair's is an error with that server's name."""
    with (
        stub_server(tmp_path, "--response-role", "assistant@vllm-9") as other,
        stub_server(tmp_path, "--response-role", "assistant@vllm-0") as ours,
        pytest.raises(RunError, match="a server that calls itself 'vllm-9' answered, and none of the pair"),
    ):
        measure(f"{other}/v1", {"vllm-0": ours}, model="m", extra_body={})


def test_a_balancer_that_never_answers_is_waited_for_and_told(tmp_path: Path) -> None:
    """One that refuses is asked again for a while, since it may not have seen the servers yet, and then told."""
    began_s = time.monotonic()
    with (
        stub_server(tmp_path, "--stub-key", "none has it") as front,
        stub_server(tmp_path, "--response-role", "assistant@vllm-0") as ours,
        pytest.raises(RunError, match="does not answer: HTTP 401: no key"),
    ):
        measure(f"{front}/v1", {"vllm-0": ours}, model="m", extra_body={}, seen_s=0.5)
    assert time.monotonic() - began_s > 0.5
    gone = f"http://127.0.0.1:{free_ports(1)[0]}/v1"
    with pytest.raises(RunError, match="does not answer"):
        measure(gone, {"vllm-0": gone}, model="m", extra_body={})


def test_no_prompt_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair has a prompt and a user of its own: no cache holds it, and no policy sends all to one server."""
    bodies: list[int] = []

    def ask(_self: object, number: int) -> tuple[float, str]:
        bodies.append(number)
        return 0.001, "vllm-0"

    monkeypatch.setattr(balancer_latency._Caller, "ask", ask)
    measure("http://127.0.0.1:1/v1", {"vllm-0": "http://127.0.0.1:1"}, model="m", extra_body={})
    assert bodies == [n for n in range(PAIRS_PER_SERVER + 2) for _ in range(2)]
