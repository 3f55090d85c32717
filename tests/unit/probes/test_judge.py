"""What the answers to the probes prove, on a pair that is not there."""

from __future__ import annotations

import pytest

from pytest_kvcache.probes.judge import ProbeRules, computed, differences, judge, source, used
from pytest_kvcache.probes.steps import Step
from pytest_kvcache.serving.claim import Claim
from tests.unit.probes.fake import CHUNK, FakePair, whole


def found(pair: FakePair, claim: Claim | None = None) -> list[str]:
    """Return the faults of all steps."""
    asked = whole(pair)
    return judge(asked, computed(asked), ProbeRules(claim or pair.claim, CHUNK, tolerance=0.01))


@pytest.mark.parametrize("claim", list(Claim))
def test_a_sound_pair_has_no_fault(claim: Claim) -> None:
    """Where each level gives what was put into it, and shares what the tier claims, nothing is found."""
    assert found(FakePair(claim)) == []


@pytest.mark.parametrize(
    ("claim", "sources"),
    [
        (Claim.DEVICE, ["computed", "the device cache", "computed", "computed", "computed"]),
        (Claim.L1, ["computed", "the device cache", "L1", "computed", "computed"]),
        (Claim.L2, ["computed", "the device cache", "L1", "the shared storage", "the shared storage"]),
    ],
)
def test_each_step_asks_another_level(claim: Claim, sources: list[str]) -> None:
    """Computed, device, L1, L2: each step is answered from the level that it is about, by the counters."""
    asked = whole(FakePair(claim))
    assert [source(each) for each in asked if each.sentinel.home == "vllm-0"] == sources
    assert [each.step for each in asked[::2]] == list(Step)


@pytest.mark.parametrize("claim", [Claim.L1, Claim.L2])
def test_an_lmcache_that_does_not_tell_its_levels(claim: Claim) -> None:
    """Nothing is found in a sound pair; what is wrong is found as with levels, but for which of them it is."""
    assert found(FakePair(claim, split=False)) == []
    (fault, _) = found(FakePair(claim, split=False, corrupt=("l1",)))
    assert "when its KV comes from LMCache (L1 or the shared storage)" in fault
    warm = found(FakePair(Claim.L2, l2={"vllm-1"}, split=False))
    assert warm[0].endswith("the storage held what an earlier run left; empty it, or give the tier one of its own")


def test_leftovers_in_the_storage_are_a_warm_start() -> None:
    """A sentinel of an earlier run in the shared storage is found, with where it is and what to do."""
    faults = found(FakePair(Claim.L2, l2={"vllm-1"}))
    assert faults == [
        "warm start: vllm-1 had 1024 of 1043 tokens in the shared storage of a prompt that this boot had not sent "
        "before; the storage held what an earlier run left; empty it, or give the tier one of its own"
    ]


def test_a_server_that_is_not_fresh_is_a_warm_start() -> None:
    """A sentinel in the device cache of a server that nobody has asked is found."""
    pair = FakePair(Claim.DEVICE)
    pair.device["vllm-0"].add("vllm-0")
    (fault,) = found(pair)
    assert fault.startswith("warm start: vllm-0 had 1024 of 1043 tokens in the device cache")
    assert "was not started by this boot" in fault


def test_servers_that_share_nothing() -> None:
    """Where the tier claims a shared storage and neither server finds what the other stored, both ways are named."""
    faults = found(FakePair(Claim.L2, shares=False))
    assert [fault.partition(" tokens")[0] for fault in faults] == ["vllm-1 had 0 of 1024", "vllm-0 had 0 of 1024"]
    assert "the servers do not share the storage" in faults[0]


def test_servers_that_share_although_the_tier_claims_they_do_not() -> None:
    """A hit on the other server is a fault where the tier has CPU RAM only."""
    faults = found(FakePair(Claim.L2), Claim.L1)
    assert any("claims that its servers share nothing" in fault for fault in faults)


def test_an_lmcache_that_gives_nothing_back() -> None:
    """Where LMCache returns nothing of what it was just given, that is a fault."""
    assert all("gave back nothing" in fault for fault in found(FakePair(Claim.DEVICE), Claim.L1))


@pytest.mark.parametrize(
    ("level", "where"), [("device", "the device cache"), ("l1", "L1"), ("l2", "the shared storage")]
)
def test_corrupted_kv_is_named_by_its_level(level: str, where: str) -> None:
    """Another answer when the KV comes from a level names that level, and no other."""
    faults = found(FakePair(Claim.L2, corrupt=(level,)))
    assert faults
    assert all(f.startswith("corrupted KV: ") and f"its KV comes from {where}: log-probab" in f for f in faults)


@pytest.mark.parametrize(("claim", "level"), [(Claim.DEVICE, "device"), (Claim.L1, "l1"), (Claim.L2, "l1")])
def test_a_level_that_was_not_emptied(claim: Claim, level: str) -> None:
    """A reset that says it worked and did nothing is seen by what the level still has."""
    faults = found(FakePair(claim, sticks=(level,)))
    assert any("was emptied and had 1024 of 1043 tokens" in fault for fault in faults)


def test_the_largest_difference_is_kept_by_level() -> None:
    """How much answers differ is known for each of them, also where they are the same."""
    asked = whole(FakePair(Claim.L2, corrupt=("l2",)))
    sizes = {source(e): d.largest for e, d in differences(asked, computed(asked), ProbeRules(Claim.L2, CHUNK, 5.0))}
    assert sizes == {"the device cache": 0.0, "L1": 0.0, "the shared storage": 2.0}


def test_servers_that_were_used_before() -> None:
    """Counters that are not at zero before the first request name the server and the counter."""
    fresh = {"vllm-0": {"vllm:prompt_tokens_total": 0.0}, "lmcache-0": {"lmcache_mp_num_inflight_l2_stores": 0.0}}
    assert used(fresh) == []
    (fault,) = used(fresh | {"lmcache-1": {'lmcache_mp_l1_write_chunks_total{l1_tag="_default"}': 8.0}})
    assert fault.startswith(
        "lmcache-1 was used before this boot asked it anything (lmcache_mp_l1_write_chunks_total: 8)"
    )
