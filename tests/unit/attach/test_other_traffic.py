"""Whose traffic the counters have, and whether servers stayed what they were (pure)."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.proof.judge import ServedCaches, judge
from pytest_kvcache.proof.other_traffic import identity, other_traffic
from pytest_kvcache.serving.claim import Claim
from tests.unit.test_exact import workload

PROMPTS, GENERATED, DONE = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
)
SERVERS = frozenset({"vllm-0", "vllm-1"})


def rows(*requests: tuple[str, int], failed: int = 0) -> pd.DataFrame:
    """Return rows of answered requests, each a server and a prompt's length, and of so many that failed."""
    done: list[tuple[str, int | None, int | None, str, float]] = [(s, p, 5, "ok", 1.0) for s, p in requests]
    done += [("", None, None, "http-error", 1.0)] * failed
    frame = pd.DataFrame(done, columns=["server", "prompt_tokens", "generated_tokens", "status", "last_token_s"])
    times = {"actual_start_s": 0.0, "due_s": 0.0, "first_token_s": 0.5, "server_queue_s": 0.1, "server_ttft_s": 0.3}
    return frame.assign(cached_tokens=0, intended_prompt_tokens=100, user=1, round=1, **times)


def counters(**prompts: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return readings before and after, between which servers counted so many prompt tokens."""
    names = {name.replace("_", "-"): count for name, count in prompts.items()}
    before = {name: {PROMPTS: 1000.0} for name in names}
    return before, {name: {PROMPTS: 1000.0 + count} for name, count in names.items()}


def test_a_deployment_of_ones_own() -> None:
    """Counters that grew by what the answers say had no other traffic."""
    found = other_traffic(rows(("vllm-0", 100), ("vllm-1", 200)), *counters(vllm_0=100, vllm_1=200))
    assert found.share == 0
    assert not found.lines
    assert not found.faults


def test_the_share_of_others_is_named() -> None:
    """What was counted beyond the answers is others', in all and for each server."""
    found = other_traffic(rows(("vllm-0", 100), ("vllm-1", 200)), *counters(vllm_0=135, vllm_1=300))
    assert found.lines == (
        "31% of the prompt tokens in the window were not this run's (135 of 435: vllm-0 35 of 135, vllm-1 100 of 300)",
    )
    assert found.share == pytest.approx(135 / 435, abs=1e-4)


def test_servers_that_do_not_name_themselves() -> None:
    """Without names in the answers the sums are compared, and no server is named."""
    found = other_traffic(rows(("", 100), ("", 200)), *counters(vllm_0=100, vllm_1=300))
    assert found.lines == ("25% of the prompt tokens in the window were not this run's (100 of 400)",)


@pytest.mark.parametrize(("tolerance", "told"), [(0.3, 1), (0.32, 0)])
def test_a_share_that_is_allowed(tolerance: float, told: int) -> None:
    """A share up to the tolerance is no line, and is kept all the same."""
    found = other_traffic(rows(("vllm-0", 300)), *counters(vllm_0=435), tolerance=tolerance)
    assert len(found.lines) == told
    assert found.share == pytest.approx(0.3103)


def test_a_server_that_is_not_read() -> None:
    """Answers of more prompt tokens than were counted came from a server that nobody named: no verdict rests on it."""
    found = other_traffic(rows(("", 100), ("", 200)), *counters(vllm_0=100))
    assert not found.lines
    assert "a server answered that is not among vllm-0" in found.faults[0]


def test_a_request_that_failed_may_have_been_counted() -> None:
    """The prompt of a request without an answer is nobody else's traffic."""
    assert not other_traffic(rows(("vllm-0", 300), failed=1), *counters(vllm_0=400)).lines
    assert other_traffic(rows(("vllm-0", 300), failed=1), *counters(vllm_0=401)).lines


def test_long_answers_of_others_are_seen() -> None:
    """Others whose prompts came before the window are seen by what is generated for them, and by what is running."""
    before, after = counters(vllm_0=300)
    before["vllm-0"] |= {GENERATED: 0.0, DONE: 0.0, "vllm:num_requests_running": 2.0}
    after["vllm-0"] |= {GENERATED: 20.0, DONE: 2.0, "vllm:num_requests_running": 0.0}
    found = other_traffic(rows(("vllm-0", 300)), before, after)
    assert found.lines == (
        "75% of the generated tokens were not this run's (15 of 20)",
        "50% of the finished requests were not this run's (1 of 2)",
        "2 requests that were not this run's were being answered when the clock started",
    )


def test_an_lmcache_that_other_engines_use() -> None:
    """An LMCache that is asked for more than the known servers' prompts has other engines."""
    before, after = counters(vllm_0=300)
    before["lmcache-0"], after["lmcache-0"] = {}, {"lmcache_mp_lookup_requested_tokens_total": 600.0}
    found = other_traffic(rows(("vllm-0", 300)), before, after)
    assert found.lines == (
        "LMCache was asked for 600 tokens, and the prompts of all servers that are known had 300: other engines use it",
    )


def test_nothing_is_known_without_counters() -> None:
    """Where no counter is read it is said that nobody knows."""
    found = other_traffic(rows(("", 100)), {}, {})
    assert found.share is None
    assert found.unchecked == ("whether others used the deployment: no counter of prompt tokens is read",)


@given(
    ours=st.lists(st.tuples(st.sampled_from(sorted(SERVERS)), st.integers(1, 5000)), min_size=1, max_size=20),
    others=st.integers(0, 50_000),
)
def test_the_share_is_that_of_others(ours: list[tuple[str, int]], others: int) -> None:
    """Whatever the requests, the share is what others sent over all that was counted, and a line says so."""
    told = {name: sum(prompt for server, prompt in ours if server == name) for name in SERVERS}
    found = other_traffic(rows(*ours), *counters(vllm_0=told["vllm-0"] + others, vllm_1=told["vllm-1"]))
    assert found.share == pytest.approx(others / (others + sum(told.values())), abs=1e-4)
    assert bool(found.lines) == (others > 0)
    assert not found.faults


def info(blocks: int) -> dict[str, float]:
    """Return the counters of a server with so many blocks."""
    return {f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}}': 1.0}


def test_a_server_with_another_cache() -> None:
    """A server whose cache is configured otherwise than before was replaced under the same address."""
    found = identity(rows(("vllm-0", 1)), {"vllm-0": info(10)}, {"vllm-0": info(11)}, frozenset({"vllm-0"}))
    assert found.faults == ("vllm-0: its cache is configured otherwise than before the run: it was replaced under way",)


def test_a_server_that_nobody_named() -> None:
    """A new name beside known ones in the answers is a server that came under way; names of another scheme are not."""
    strange = identity(rows(("vllm-0", 1), ("pod-x", 1)), {}, {}, SERVERS)
    assert "answers came from pod-x, which is none of vllm-0, vllm-1" in strange.faults[0]
    other = identity(rows(("a", 1), ("b", 1)), {}, {}, SERVERS)
    assert not other.faults
    assert "answers name a, b" in other.unchecked[0]
    assert identity(rows(("vllm-0", 1)), {}, {}, SERVERS) == identity(rows(("vllm-1", 1)), {}, {}, SERVERS)
    assert not identity(rows(("vllm-0", 1)), {}, {}, SERVERS).unchecked


def test_requests_beyond_the_rows_are_the_runs_own() -> None:
    """A run that ended early had sent requests that are in no row: neither prompts nor answers of them are others'."""
    before, after = counters(vllm_0=400)
    before["vllm-0"] |= {GENERATED: 0.0, DONE: 0.0}
    after["vllm-0"] |= {GENERATED: 10.0, DONE: 2.0}
    found = other_traffic(rows(("vllm-0", 300)), before, after, beyond_tokens=100)
    assert not found.lines
    assert not found.faults


@pytest.mark.parametrize("claim", list(Claim))
def test_only_the_router_is_known(claim: Claim) -> None:
    """Where no server's counters are read, a tier's claim is not proved, and that is no fault."""
    served = ServedCaches(claim, chunk_tokens=256, l1_bytes=1e9)
    proof = judge(rows(("", 300)), {}, {}, served, workload=workload(), context_tokens=200, shared=0.0)
    assert not proof.faults
    assert any("no counters of a server are read" in line for line in proof.unchecked)


def test_a_server_that_the_router_leaves_out_is_told() -> None:
    """A deployment's router may send everything to one server: that is told, and no fault as it is of our router."""
    before, after = counters(vllm_0=300, vllm_1=0)
    for reading in (before, after):
        for own in reading.values():
            own['vllm:prompt_tokens_by_source_total{source="local_compute"}'] = own[PROMPTS]
    served = ServedCaches(Claim.DEVICE, chunk_tokens=256, l1_bytes=1e9)
    standing, booted = (
        judge(rows(("vllm-0", 300)), before, after, served, workload=workload(), context_tokens=200, shared=shared)
        for shared in (0.0, None)
    )
    assert not standing.faults
    assert any("vllm-1 got not one prompt token" in line for line in standing.unchecked)
    assert any("vllm-1 got not one prompt token" in line for line in booted.faults)
