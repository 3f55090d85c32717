"""The ledger from counters, and its balance with what the client was told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.proof.balance import balance, client_tokens
from pytest_kvcache.proof.ledger import build_ledger
from pytest_kvcache.telemetry import counters
from pytest_kvcache.telemetry.prometheus import STARTED
from tests.unit.proof import real

COUNT = st.integers(0, 10**9).map(float)
SOURCE = "vllm:prompt_tokens_by_source_total"


@pytest.mark.parametrize("name", [*real.WORKING, real.IDLE])
def test_real_runs_balance_to_the_token(name: str) -> None:
    """Prompt and cached tokens of every server are, in every real run, exactly what its answers say."""
    run = real.load(name)
    assert counters.faults(run.before, run.after) == []
    assert balance(run.ledger, client_tokens(run.rows)) == []


def test_the_ledger_of_a_real_run() -> None:
    """A run on the stand-in for pNFS: what was computed, on the device, in L1 and in L2, server by server."""
    run = real.load("pnfs-3500-boot")
    first, second = run.ledger.servers["vllm-0"], run.ledger.servers["vllm-1"]
    assert (first.computed, first.device, first.external, first.lost) == (4508, 1024, 25728, 0)
    assert (first.l1_found, first.l2_found, first.requested) == (14592, 12160, 30848)
    assert (second.computed, second.device, second.external, second.lost) == (4380, 1024, 25856, 0)
    assert run.ledger.total.l2 == pytest.approx(32872, abs=1)
    assert run.ledger.transfers["vllm-0"].l2_stored == 32
    assert run.ledger.transfers["vllm-0"].stored_bytes == 32 * 128 * 4096


@given(counts=st.lists(COUNT, min_size=8, max_size=8))
def test_the_ledger_balances_by_construction(counts: list[float]) -> None:
    """Whatever LMCache says, the sum is what vLLM counted, no part is negative, and L2 lies within its bounds."""
    computed, device, external, hit, l1_keys, l2_keys, failed, unread = counts
    grown = {
        "vllm-0": {
            f'{SOURCE}{{source="local_compute"}}': computed,
            f'{SOURCE}{{source="local_cache_hit"}}': device,
            f'{SOURCE}{{source="external_kv_transfer"}}': external,
        },
        "lmcache-0": {
            "lmcache_mp_lookup_hit_tokens_total": hit,
            "lmcache_mp_lookup_hit_l1_keys_total": l1_keys,
            "lmcache_mp_lookup_hit_l2_keys_total": l2_keys,
            'lmcache_mp_l2_prefetch_failure_chunks_total{reason="not_found"}': failed,
            'lmcache_mp_l1_read_failure_chunks_total{during="l1_retrieve",reason="not_found"}': unread,
        },
    }
    tokens = build_ledger(grown, chunk_tokens=128).servers["vllm-0"]
    assert tokens.total == pytest.approx(computed + device + external)
    assert tokens.cached == pytest.approx(device + external)
    parts = (tokens.computed, tokens.device, tokens.l1, tokens.l2, tokens.other, tokens.lost)
    assert min(parts) >= 0


def test_lmcache_inside_vllm() -> None:
    """In-process, retrieved tokens are split by the bytes read, at the size that stored tokens had."""
    grown = {
        "vllm-0": {
            f'{SOURCE}{{source="local_compute"}}': 1000.0,
            f'{SOURCE}{{source="local_cache_hit"}}': 500.0,
            f'{SOURCE}{{source="external_kv_transfer"}}': 3000.0,
        },
        "lmcache-0": {
            "lmcache:num_lookup_tokens_total": 4500.0,
            "lmcache:num_requested_tokens_total": 3000.0,
            "lmcache:num_hit_tokens_total": 2800.0,
            "lmcache:num_stored_tokens_total": 1000.0,
            "lmcache:num_remote_write_bytes_total": 4_000_000.0,
            "lmcache:num_remote_read_bytes_total": 8_000_000.0,
            "lmcache:num_remote_read_requests_total": 4.0,
        },
    }
    tokens = build_ledger(grown, chunk_tokens=256).servers["vllm-0"]
    assert (tokens.l1, tokens.l2, tokens.lost, tokens.total) == (800, 2000, 200, 4500)


def test_vllm_without_a_split_by_source() -> None:
    """An older vLLM has no counter by source: its prefix-cache counters say the same."""
    grown = {
        "vllm-0": {
            "vllm:prompt_tokens_total": 100.0,
            "vllm:prefix_cache_hits_total": 30.0,
            "vllm:external_prefix_cache_hits_total": 20.0,
        }
    }
    tokens = build_ledger(grown, chunk_tokens=256).servers["vllm-0"]
    assert (tokens.computed, tokens.device, tokens.other) == (50, 30, 20)


def test_answers_that_the_counters_do_not_have() -> None:
    """A server whose counters have less or more than its answers is named, with both sums."""
    run = real.load("gpu-3500")
    run.after["vllm-0"][f'{SOURCE}{{source="local_compute"}}'] -= 3732
    run.after["vllm-1"][f'{SOURCE}{{source="local_compute"}}'] += 100
    less, more = balance(run.ledger, client_tokens(run.rows))
    assert less.startswith("vllm-0 counted 35668 prompt tokens, its answers say 39400")
    assert more.startswith("vllm-1 counted 38928 prompt tokens, its answers say 38828: somebody else")


def test_a_failed_request_may_or_may_not_have_been_counted() -> None:
    """The prompt of a request that failed is room above what the answers say, and no more."""
    run = real.load("gpu-3500")
    run.rows.loc[3, "status"] = "timed-out"
    run.rows.loc[3, "prompt_tokens"] = None
    client = client_tokens(run.rows)
    assert balance(run.ledger, client) == []
    run.after["vllm-1"][f'{SOURCE}{{source="local_compute"}}'] += 10
    assert "(tolerance -0, +3784)" in balance(run.ledger, client)[0]


def test_answers_without_a_server() -> None:
    """Answers that do not say who gave them cannot be held against anything."""
    run = real.load("gpu-3500")
    run.rows["server"] = ""
    assert "do not name their server" in balance(run.ledger, client_tokens(run.rows))[0]


def test_a_reset_counter() -> None:
    """A counter that fell is a restart within the run."""
    run = real.load("gpu-3500")
    run.after["vllm-1"] = dict.fromkeys(run.after["vllm-1"], 0.0)
    (fault,) = counters.faults(run.before, run.after)
    assert fault.startswith("vllm-1: ")
    assert "started anew" in fault


def test_a_restart_that_has_counted_more_since() -> None:
    """A server that has counted more since its restart than before it is known by the start of its process."""
    run = real.load("gpu-3500")
    run.before["vllm-1"][STARTED], run.after["vllm-1"][STARTED] = 1000.0, 1020.0
    run.before["vllm-0"][STARTED] = run.after["vllm-0"][STARTED] = 1000.0
    (fault,) = counters.faults(run.before, run.after)
    assert fault.startswith("vllm-1: its process is not the one of before: it was started anew")


@pytest.mark.parametrize("rank", ["lmcache-0", "lmcache-0.1"])
def test_a_restart_of_a_rank(rank: str) -> None:
    """Where vLLM's endpoint does not say when it was started, that of the LMCache inside each of its ranks does."""
    run = real.load("inside-pnfs-3500-tp2")
    assert STARTED not in run.after["vllm-0"]
    run.after[rank][STARTED] += 20.0
    (fault,) = counters.faults(run.before, run.after)
    assert fault.startswith(f"{rank}: its process is not the one of before: it was started anew")


def test_an_endpoint_that_is_gone() -> None:
    """Counters that could not be read, before or after, prove nothing."""
    run = real.load("pnfs-3500")
    run.after["lmcache-1"] = {}
    run.before["vllm-0"] = {}
    lmcache, vllm = counters.faults(run.before, run.after)
    assert lmcache.startswith("lmcache-1: its counters could not be read after the run")
    assert vllm.startswith("vllm-0: its counters could not be read before the run")


def test_gauges_may_fall() -> None:
    """LMCache names gauges `..._count`; only a histogram's count is one that may not fall."""
    before = {"vllm-0": {"lmcache:local_cpu_hot_cache_count": 9.0, "x": 1.0}}
    after = {"vllm-0": {"lmcache:local_cpu_hot_cache_count": 4.0}}
    assert counters.faults(before, after) == []
