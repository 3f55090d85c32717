"""The oracle against real runs, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.proof.expected_hits import Hierarchy, OracleRequest, expectable, simulate
from pytest_kvcache.proof.hit_differences import hit_differences, warm_start_faults
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.serving.claim import Claim
from tests.unit.proof import real

CACHES = Hierarchy(Claim.L2, block_tokens=16, device_blocks=21, chunk_tokens=32, l1_tokens=1000, shared_tokens=40)
ASKS = st.lists(
    st.builds(
        OracleRequest,
        st.integers(0, 3),
        st.integers(1, 200),
        st.integers(1, 20),
        st.sampled_from(["a", "b"]),
        st.booleans(),
    ),
    max_size=30,
)


@pytest.mark.parametrize("name", real.WORKING)
def test_real_runs_are_met_to_the_token(name: str) -> None:
    """In runs of one request at a time the oracle is right for every request: what was cached, and by whom."""
    run = real.load(name)
    expected = simulate(run.asks(), run.caches(real.claim_of(name)))
    assert [tokens.cached for tokens in expected.requests] == list(run.rows["cached_tokens"])
    for server, measured in run.ledger.servers.items():
        want = expected.servers[server]
        assert (want.computed, want.device, want.external) == (measured.computed, measured.device, measured.external)
    assert hit_differences(expected.servers, run.ledger) == []


@pytest.mark.parametrize("name", ["pnfs-1000", "pnfs-3500-boot"])
def test_levels_are_met_too(name: str) -> None:
    """On a fresh pair the oracle knows which of L1 and L2 held each chunk."""
    run = real.load(name)
    expected = simulate(run.asks(), run.caches(Claim.L2))
    for server, measured in run.ledger.servers.items():
        want = expected.servers[server]
        assert (want.l1_found, want.l2_found) == (measured.l1_found, measured.l2_found)


@pytest.mark.parametrize("name", real.INSIDE)
def test_levels_inside_vllm_are_met_too(name: str) -> None:
    """LMCache inside vLLM is asked for what vLLM lacks only: the oracle knows which level gave each of these tokens."""
    run = real.load(name)
    expected = simulate(run.asks(), run.caches(real.claim_of(name)))
    for server, measured in run.ledger.servers.items():
        want = expected.servers[server]
        assert (measured.l1, measured.l2) == pytest.approx((want.l1, want.l2))


def test_a_tier_that_does_nothing_is_a_gap() -> None:
    """Where hits are expected and none came, each server has a line, with the cause."""
    run = real.load(real.IDLE)
    lines = hit_differences(simulate(run.asks(), run.caches(Claim.L2)).servers, run.ledger)
    assert len(lines) == 4
    assert lines[0] == ("vllm-0: 0% of its prompt tokens from LMCache, 83% expected: LMCache was never asked")


def test_leftovers_are_a_gap() -> None:
    """More hits than a cold start can give come from before the run."""
    run = real.load("pnfs-3500")
    asks = [replace(ask, user=number) for number, ask in enumerate(run.asks())]
    lines = hit_differences(simulate(asks, run.caches(Claim.L2)).servers, run.ledger)
    assert any("the start was not cold" in line for line in lines)


def test_one_question_a_user() -> None:
    """A workload in which no prompt comes back can have no hits, and says why."""
    asks = [OracleRequest(user, 200, 10, "a") for user in range(5)]
    caches = replace(CACHES, shared_tokens=0)
    found = expectable(simulate(asks, caches), caches, asks)
    assert found.l1 == found.l2 == "every user asks once, so that no prompt comes back"


def test_prompts_shorter_than_a_chunk() -> None:
    """LMCache keeps whole chunks only."""
    asks = [OracleRequest(1, 30, 1, "a"), OracleRequest(1, 31, 1, "a")]
    found = expectable(simulate(asks, CACHES), CACHES, asks)
    assert "shorter than a chunk of LMCache (32)" in found.l1


def test_users_who_stay_where_they_are() -> None:
    """Users who never change servers have all in L1, so that no hit in L2 is asked for."""
    caches = replace(CACHES, shared_tokens=0, device_blocks=12, l1_tokens=10_000)
    asks = [
        OracleRequest(user, 160, 4, server)
        for _ in range(3)
        for user, server in ((1, "a"), (2, "b"), (3, "a"), (4, "b"))
    ]
    found = expectable(simulate(asks, caches), caches, asks)
    assert found.l1 == ""
    assert "no user changes servers" in found.l2


def test_a_device_that_holds_everything() -> None:
    """A device cache larger than the workload leaves nothing for the tier."""
    caches = replace(CACHES, device_blocks=1000)
    asks = [OracleRequest(1, 160, 4, "a"), OracleRequest(1, 180, 4, "a")]
    assert "device cache holds nearly all" in expectable(simulate(asks, caches), caches, asks).l1


def test_a_small_l1_forgets() -> None:
    """With an L1 that holds less than what comes back, the shared storage serves instead."""
    small = replace(CACHES, shared_tokens=0, device_blocks=12, l1_tokens=200)
    asks = [OracleRequest(user, 160, 4, "a") for _ in range(3) for user in (1, 2, 3)]
    assert simulate(asks, small).total.l2 > simulate(asks, replace(small, l1_tokens=10_000)).total.l2 == 0


@given(asks=ASKS, claim=st.sampled_from(Claim), keeps=st.booleans(), returns=st.booleans())
def test_expected_tokens_add_up(asks: list[OracleRequest], claim: Claim, keeps: bool, returns: bool) -> None:
    """Every measured prompt is accounted for to the token, and no source gives less than nothing."""
    caches = replace(CACHES, claim=claim, inside=keeps, answers_return=returns)
    expected = simulate(asks, caches)
    measured = [ask for ask in asks if ask.measured]
    assert [tokens.total for tokens in expected.requests] == [ask.prompt_tokens for ask in measured]
    assert all(min(t.computed, t.device, t.l1, t.l2) >= 0 for t in expected.requests)
    assert all(t.computed >= 1 for t in expected.requests)


@given(asks=ASKS)
def test_a_tier_never_makes_more_work(asks: list[OracleRequest]) -> None:
    """With L1 less is computed than without, and with L2 less than with L1 alone."""
    computed = [simulate(asks, replace(CACHES, claim=claim, l1_tokens=1e6)).total.computed for claim in Claim]
    assert computed == sorted(computed, reverse=True)


@given(asks=ASKS, blocks=st.integers(2, 40))
def test_no_device_cache_makes_more_of_an_l2_than_it_holds(asks: list[OracleRequest], blocks: int) -> None:
    """What all levels give together is bounded by what was computed before, however the device cache evicts."""
    caches = replace(CACHES, claim=Claim.L2, l1_tokens=1e6)
    most = simulate(asks, replace(caches, device_blocks=10_000)).total.cached
    assert simulate(asks, replace(caches, device_blocks=blocks)).total.cached <= most


@pytest.mark.parametrize("name", [name for name in real.WORKING if name.startswith("pnfs")])
def test_real_cold_starts_are_not_said_to_be_warm(name: str) -> None:
    """Runs that began with an empty storage had no more in caches than they can have put there."""
    run = real.load(name)
    assert warm_start_faults(simulate(run.asks(), run.caches(Claim.L2)).servers, run.ledger) == []


def test_more_than_a_cold_start_can_give() -> None:
    """As in the real run whose storage held all that the one before had stored: 98 % where 84 % are the most."""
    most = {"vllm-0": Tokens(computed=16, device=3, l1=35, l2=46), "vllm-1": Tokens(computed=50, l2=50)}
    (line,) = warm_start_faults(
        most, Ledger({"vllm-0": Tokens(computed=2, device=3, l2=95), "vllm-1": Tokens(computed=100)}, {})
    )
    assert line.startswith("vllm-0 had 98% of its prompt tokens in caches, and 84% is the most")
    assert "empty it" in line
