"""The probes of a deployment: nothing is emptied, what cannot be seen is said, a wrong answer is still a fault."""

from __future__ import annotations

import pytest

from pytest_kvcache.probes.judge import ProbeRules
from pytest_kvcache.probes.probe import Probes
from pytest_kvcache.probes.steps import Step
from pytest_kvcache.serving.claim import Claim
from tests.unit.probes.fake import CHUNK, FakePair


class Standing(FakePair):
    """A pair that refuses to be emptied, and was used before."""

    def reset_device(self, server: str) -> None:
        """Never asked for."""
        raise AssertionError(f"{server} was emptied")

    def clear_l1(self, server: str) -> None:
        """Never asked for."""
        raise AssertionError(f"{server} was emptied")


def probes(pair: FakePair) -> Probes:
    """Return the probes of a deployment."""
    return Probes(pair, ProbeRules(pair.claim, chunk_tokens=CHUNK, tolerance=0.1), standing=True)


@pytest.mark.parametrize("claim", list(Claim))
def test_a_sound_deployment(claim: Claim) -> None:
    """It is asked cold, again and across, never emptied, and between two loads it is left alone."""
    found = probes(Standing(claim)).boot()
    assert found.faults == ()
    assert {each.step for each in found.answers} == {Step.COLD, Step.AGAIN, Step.ACROSS}
    assert found.unchecked[0].startswith("a cold start: the deployment stood before")
    assert "new to all caches" in found.line
    assert probes(Standing(claim)).between().answers == ()


def test_servers_that_share_nothing() -> None:
    """A tier that claims a shared storage and finds nothing of the other server's is a fault, as for a booted pair."""
    assert "the servers do not share the storage" in probes(Standing(Claim.L2, shares=False)).boot().faults[0]


def test_an_answer_that_is_damaged() -> None:
    """KV that answers otherwise than computed KV is a fault, as for a booted pair."""
    assert any("corrupted KV" in line for line in probes(Standing(Claim.L2, corrupt=("l2",))).boot().faults)
