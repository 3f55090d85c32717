"""Claims of tiers, held against ledgers of real runs and of runs that were broken in one way each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.proof.claims import Expectable, check_claim
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.telemetry.transfers import Transfers
from tests.unit.proof import real

STORES = "lmcache_mp_l2_store_"


@pytest.mark.parametrize("name", real.WORKING)
def test_real_runs_keep_their_claim(name: str) -> None:
    """A tier that did its work is not accused."""
    checked = check_claim(real.claim_of(name), real.load(name).ledger)
    assert checked.faults == ()
    assert checked.unchecked == ()


def test_a_connector_that_does_nothing() -> None:
    """The real run whose connector never asked LMCache: all answers came, and the claim does not hold."""
    (fault,) = check_claim(Claim.L2, real.load(real.IDLE).ledger).faults
    assert fault.startswith("no prompt token came from the shared storage: LMCache was never asked")
    assert "--kv-transfer-config" in fault


def test_a_connector_where_none_should_be() -> None:
    """A tier of vLLM alone has no external hits; each server that has some is named."""
    faults = check_claim(Claim.DEVICE, real.load("pnfs-3500").ledger).faults
    assert len(faults) == 2
    assert faults[0].startswith("vllm-0 took 33408 prompt tokens from a connector")


def test_an_l2_in_the_tier_of_l1() -> None:
    """The CPU tier must not get anything from a shared storage."""
    faults = check_claim(Claim.L1, real.load("pnfs-3500").ledger).faults
    assert len(faults) == 1
    assert "L2 that this tier does not have" in faults[0]


def _no_stores(run: real.Run) -> None:
    for name in ("lmcache-0", "lmcache-1"):
        after, before = run.after[name], run.before[name]
        done = f"{STORES}completed_objects_chunks_total"
        after[done] = before.get(done, 0.0)


def _some_stores_fail(run: real.Run) -> None:
    run.add("lmcache-0", **{f"{STORES}submitted_objects_chunks_total": 5})


def _loads_fail(run: real.Run) -> None:
    run.add("lmcache-1", lmcache_mp_l2_prefetch_failure_chunks_total__not_found=7)


def _no_room(run: real.Run) -> None:
    run.add("lmcache-1", lmcache_mp_l2_prefetch_failure_chunks_total__l1_oom=7)


def _dropped(run: real.Run) -> None:
    run.add("lmcache-0", lmcache_mp_event_bus_dropped_events_total=3)


def _all_to_one(run: real.Run) -> None:
    run.after["vllm-1"] = dict(run.before["vllm-1"])
    run.after["lmcache-1"] = dict(run.before["lmcache-1"])


def _no_l2(run: real.Run) -> None:
    for name in ("lmcache-0", "lmcache-1"):
        for key in [k for k in run.after[name] if "_l2_" in k]:
            run.after[name][key] = run.before[name].get(key, 0.0)
    run.add("lmcache-1", lmcache_mp_lookup_hit_l1_keys_total=100)


def _l2_refuses(run: real.Run) -> None:
    _no_l2(run)
    run.add("lmcache-0", **{f"{STORES}submitted_objects_chunks_total": 5, f"{STORES}completed_requests_total": 1})


def _elsewhere(run: real.Run) -> None:
    run.after["lmcache-0"] |= {k: v for k, v in run.before["lmcache-0"].items() if "lookup" in k}
    for key in [k for k in run.after["lmcache-0"] if "lookup" in k and k not in run.before["lmcache-0"]]:
        del run.after["lmcache-0"][key]


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_no_stores, "handed 33 chunks to the shared storage and none was stored: its log says why"),
        (_some_stores_fail, "handed 38 chunks to the shared storage and 5 were not stored"),
        (_loads_fail, "found 7 chunks and could not load them (not_found)"),
        (_no_room, "raise the profile's l1_size_gb"),
        (_dropped, "dropped 3 events"),
        (_all_to_one, "vllm-1 got not one prompt token"),
        (_no_l2, "LMCache runs without its L2 adapter"),
        (_l2_refuses, "from L1: every store into it failed"),
        (_elsewhere, "33408 tokens came through vLLM's connector and LMCache did not find them"),
    ],
)
def test_a_broken_tier_is_named(breaks: Callable[[real.Run], None], says: str) -> None:
    """Each way in which a tier fails behind good answers is a fault with its likely cause."""
    run = real.load("pnfs-3500")
    breaks(run)
    assert any(says in fault for fault in check_claim(Claim.L2, run.ledger).faults), check_claim(
        Claim.L2, run.ledger
    ).faults


def _put_fails(run: real.Run) -> None:
    run.add("lmcache-0", **{"lmcache:put_failed_count": 5})


def _nothing_put(run: real.Run) -> None:
    for server in ("lmcache-0", "lmcache-1"):
        for what in ("requests", "bytes"):
            key = f"lmcache:num_remote_write_{what}_total"
            run.after[server][key] = run.before[server][key]
    run.add("lmcache-0", **{"lmcache:put_failed_count": 60})


def _get_fails(run: real.Run) -> None:
    run.add("lmcache-1", **{"lmcache:get_blocking_failed_count": 3})


def _l1_is_full(run: real.Run) -> None:
    run.add("lmcache-1", **{"lmcache:local_cpu_evict_failed_count_total": 4})


def _no_remote_plugin(run: real.Run) -> None:
    for server in ("lmcache-0", "lmcache-1"):
        for key in [key for key in run.after[server] if "remote" in key]:
            run.after[server][key] = run.before[server][key] = 0.0


def _never_asked(run: real.Run) -> None:
    for server in ("vllm-0", "vllm-1"):
        key = 'vllm:prompt_tokens_by_source_total{source="%s"}'
        external, computed = key % "external_kv_transfer", key % "local_compute"
        moved = run.after[server][external] - run.before[server][external]
        run.after[server][external] -= moved
        run.after[server][computed] += moved
    for server in ("lmcache-0", "lmcache-1"):
        run.after[server] = dict(run.before[server])


def _another_connector(run: real.Run) -> None:
    for server in ("lmcache-0", "lmcache-1"):
        run.after[server] |= {
            k: run.before[server][k] for k in run.after[server] if "hit_tokens" in k or "requested" in k
        }


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_put_fails, "handed 65 chunks to the shared storage and 5 were not stored"),
        (_nothing_put, "handed 60 chunks to the shared storage and none was stored"),
        (_get_fails, "found 3 chunks and could not load them (get): reads from the storage fail"),
        (_l1_is_full, "4 chunks of vllm-1 did not fit into L1"),
        (_no_remote_plugin, "no prompt token came from the shared storage"),
        (_never_asked, "no prompt token came from the shared storage: LMCache was never asked"),
        (_another_connector, "tokens came through vLLM's connector and LMCache did not find them"),
    ],
)
def test_a_broken_tier_inside_vllm_is_named(breaks: Callable[[real.Run], None], says: str) -> None:
    """The same for an LMCache inside vLLM, on the counters of a real run of it."""
    run = real.load("inside-pnfs-3500")
    breaks(run)
    assert any(says in fault for fault in check_claim(Claim.L2, run.ledger).faults), check_claim(
        Claim.L2, run.ledger
    ).faults


def test_a_rank_that_stores_nothing() -> None:
    """A chunk is in the storage when every rank's part of it is: a rank whose stores fail is not hidden."""
    run = real.load("inside-pnfs-3500-tp2")
    for what in ("requests", "bytes"):
        key = f"lmcache:num_remote_write_{what}_total"
        run.after["lmcache-0.1"][key] = run.before["lmcache-0.1"][key]
    run.add("lmcache-0.1", **{"lmcache:put_failed_count": 60})
    assert any("and none was stored" in fault for fault in check_claim(Claim.L2, run.ledger).faults)


def test_a_store_under_way_is_no_failed_store() -> None:
    """A store that was submitted and not yet completed when the counters were read is not held against the tier."""
    run = real.load("pnfs-3500")
    run.add("lmcache-0", **{f"{STORES}submitted_objects_chunks_total": 2, f"{STORES}submitted_requests_total": 1})
    assert check_claim(Claim.L2, run.ledger).faults == ()


def test_lost_tokens_are_in_the_ledger() -> None:
    """What L2 promised and did not deliver is lost, not computed by choice; the sum stays."""
    run, broken = real.load("pnfs-3500"), real.load("pnfs-3500")
    _loads_fail(broken)
    assert broken.ledger.total.lost == 7 * 128
    assert broken.ledger.total.computed == run.ledger.total.computed - 7 * 128
    assert broken.ledger.total.total == run.ledger.total.total


def test_hits_that_cannot_be_are_not_asked_for() -> None:
    """Where the workload can have no hit the claim is not checked, and the reason is said; failures still count."""
    nothing = Expectable(l1="every user asks once", l2="every user asks once")
    for claim in (Claim.L1, Claim.L2):
        checked = check_claim(claim, real.load(real.IDLE).ledger, nothing)
        assert checked.faults == ()
        assert checked.unchecked[0].endswith("every user asks once")
    run = real.load(real.IDLE)
    _dropped(run)
    assert check_claim(Claim.L2, run.ledger, nothing).faults


@given(computed=st.integers(1, 10**6), l1=st.integers(0, 10**6), l2=st.integers(0, 10**6), more=st.integers(1, 10**6))
def test_more_hits_never_break_a_claim(computed: int, l1: int, l2: int, more: int) -> None:
    """With more hits of the kind that a tier claims, no fault is added."""

    def faults(l1: int, l2: int, claim: Claim) -> int:
        own = Tokens(computed=computed, l1=l1, l2=l2, l1_found=l1, l2_found=l2, requested=l1 + l2 + computed)
        moved = Transfers(lookups=1, l1_stored=1, l2_sent=1, l2_stored=1, l2_loaded=float(l2 > 0))
        return len(check_claim(claim, Ledger({"vllm-0": own}, {"vllm-0": moved})).faults)

    assert faults(l1, l2 + more, Claim.L2) <= faults(l1, l2, Claim.L2)
    assert faults(l1 + more, 0, Claim.L1) <= faults(l1, 0, Claim.L1)


def test_a_tier_claims_what_it_adds() -> None:
    """The claim follows from the offloading that a tier configures, unless the tier says another."""
    assert TierPlan("gpu").claim is Claim.DEVICE
    assert TierPlan("cpu", Offload()).claim is Claim.L1
    assert TierPlan("s3", Offload(l2_adapter={"type": "s3"})).claim is Claim.L2
    assert TierPlan("fs", Offload(engine_config={"remote_storage_plugins": ["fs"]})).claim is Claim.L2
    assert TierPlan("own", Offload(), claims=Claim.DEVICE).claim is Claim.DEVICE
