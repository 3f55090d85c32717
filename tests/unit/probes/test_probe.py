"""What a probe of a fresh boot finds."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_kvcache.campaign import boot_probes
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.probes.client import ProbeReply
from pytest_kvcache.probes.judge import ProbeRules
from pytest_kvcache.probes.posting import ProbeError
from pytest_kvcache.probes.probe import Probed, Probes
from pytest_kvcache.probes.sentinels import Sentinel, sentinels
from pytest_kvcache.probes.steps import cold
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.serving.offload import TierPlan, salt_of
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Message
from tests.unit.probes.fake import CHUNK, SENTINELS, SERVERS, FakePair, Words, whole

RULES = ProbeRules(Claim.L2, CHUNK, 0.01)


def test_an_l1_that_nobody_sees_is_said() -> None:
    """Where LMCache does not tell its levels, that L1 was emptied is not looked at; where there is no L2, it is."""
    what = "that L1 is empty between contexts: this LMCache does not tell L1 from the shared storage"
    for claim, expected in ((Claim.L2, (what,)), (Claim.L1, ())):
        probed = Probes(FakePair(claim, split=False), ProbeRules(claim, CHUNK, 0.01)).boot()
        assert (probed.faults, probed.unchecked) == ((), expected)


@pytest.mark.parametrize(("faults", "duration_s", "kept_s"), [((), 120, 120), (("a",), 120, 60), (("a",), 24, 24)])
def test_loads_are_short_only_where_they_prove_nothing(
    tmp_path: Path, faults: tuple[str, ...], duration_s: float, kept_s: float
) -> None:
    """A sound boot gets its whole load, and no load becomes longer."""
    workload = MultiRoundQa(
        users=3, rounds=8, qps=1, shared_prompt_tokens=0, context_tokens=(50,), answer_tokens=1, duration_s=duration_s
    )
    plan = LoadPlan(
        base_url="http://127.0.0.1:1/v1",
        model="m",
        workload=workload,
        context_tokens=50,
        tokenizer_url="http://127.0.0.1:1",
        rows=tmp_path / "rows",
        summary=tmp_path / "load",
    )
    kept = boot_probes.shortened_if_faulty(plan, Probed(faults))
    assert kept.workload.duration_s == kept_s
    assert kept.model_copy(update={"workload": workload}) == plan


@dataclass
class Watched(FakePair):
    """A pair that notes how many of its servers are asked at once, and fails where it is told."""

    fails: str = ""
    asked: list[str] = field(default_factory=list)
    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=30))
    ended: list[str] = field(default_factory=list)

    def ask(self, server: str, sentinel: Sentinel) -> ProbeReply:
        """Wait, where both may be asked at once, until both are."""
        self.asked.append(server)
        if self.side_by_side:
            self.both.wait()
        if server == self.fails:
            raise ProbeError("it fails")
        if self.fails and self.side_by_side:
            time.sleep(0.3)  # the other one answers later
        self.ended.append(server)
        return super().ask(server, sentinel)


def test_servers_with_counters_of_their_own_are_asked_at_once() -> None:
    """Each step of a booted pair has both servers under way; those of a deployment are asked one after the other."""
    at_once, in_turn = Watched(Claim.L2), Watched(Claim.L2, side_by_side=False)
    found = [whole(at_once), whole(in_turn)]
    assert sorted(at_once.asked) == sorted(in_turn.asked)
    assert [(each.step, each.server, each.served) for each in found[0]] == [
        (each.step, each.server, each.served) for each in found[1]
    ]
    assert in_turn.asked == [*SERVERS * 3, *reversed(SERVERS), *SERVERS * 2]


def test_a_server_that_fails_leaves_nothing_under_way() -> None:
    """What comes after a probe that failed is sent when the other server has answered."""
    pair = Watched(Claim.L2, fails="vllm-0")
    with pytest.raises(ProbeError, match="it fails"):
        cold(pair, SENTINELS)
    assert pair.ended == ["vllm-1"]


def test_stores_that_fail_are_told(tmp_path: Path) -> None:
    """Where nothing that was computed reaches the storage, the probes end there, and keep what they saw before."""
    probed = Probes(FakePair(Claim.L2, stores=False), RULES).boot()
    assert probed.faults == ("probes: vllm-0: of 8 chunks that it computed 0 are in the shared storage",)
    assert [each.step for each in probed.answers] == [s for s in ("cold", "again", "reloaded") for _ in SERVERS]


def test_a_storage_with_files_is_a_warm_start(tmp_path: Path) -> None:
    """A file in the run's own storage before the first request is a fault that names it."""
    (tmp_path / "128").mkdir()
    (tmp_path / "128" / "old.data").touch()
    (fault,) = Probes(FakePair(Claim.L2), RULES, [tmp_path]).boot().faults
    assert (
        fault == f"warm start: 1 files are in the storage before the first request, the first {tmp_path}/128/old.data"
    )


def test_answers_after_a_reset_are_held_against_the_first(tmp_path: Path) -> None:
    """Between two loads the same prompts are asked again: a level that was sound at the start may be no more."""
    pair = FakePair(Claim.L2)
    probes = Probes(pair, RULES)
    first = probes.boot()
    assert first.faults == ()
    assert probes.between().faults == ()
    pair.corrupt = ("l2",)
    later = first.with_more(probes.between())
    assert [fault.partition(":")[0] for fault in later.faults] == ["corrupted KV"] * 2
    assert later.largest["the shared storage"] == 2.0


def test_what_cannot_be_looked_at_is_said() -> None:
    """One server alone shares nothing."""
    alone = Probes(FakePair(Claim.L1, servers=SERVERS[:1]), ProbeRules(Claim.L1, CHUNK, 0.01)).boot()
    assert alone.faults == ()
    assert [line.partition(":")[0] for line in alone.unchecked] == ["whether servers share what they store"]


def length(text: Message) -> int:
    """Return the number of words after the opener."""
    return len(text.text.split()) - 1


def test_sentinels_are_the_same_in_every_run() -> None:
    """Leftovers of an earlier run must be hit: texts follow from nothing but server and length, and differ at once."""
    a, b = (sentinels(Words(9000), ("vllm-0", "vllm-1"), chunk_tokens=128) for _ in range(2))
    assert a == b
    assert a[0].message.text.split()[1:9] != a[1].message.text.split()[1:9]


@pytest.mark.parametrize(
    ("most", "chunk", "words"), [(9000, 128, 1025), (700, 128, 572), (None, 16, 129), (5000, 9000, 512)]
)
def test_sentinels_fit_the_model(most: int | None, chunk: int, words: int) -> None:
    """A sentinel has eight chunks and a token, or what the model takes; where no chunk fits, a short prompt does."""
    (one,) = sentinels(Words(most), ("vllm-0",), chunk_tokens=chunk)
    assert length(one.message) == words


def test_a_salt_reaches_requests_in_the_words_of_each_mode() -> None:
    """Where the storage is not the run's own, requests carry a salt of fixed length: vLLM's, or LMCache's tag."""
    salts = [salt_of(run_id) for run_id in ("a", "a-much-longer-run-id")]
    assert [len(salt) for salt in salts] == [16, 16]
    assert salts[0] != salts[1]
    plan = TierPlan(label="x", salt=salts[0])
    assert plan.request_fields(in_process=False) == {"cache_salt": salts[0]}
    assert plan.request_fields(in_process=True) == {"kv_transfer_params": {"lmcache.tag.run": salts[0]}}
    assert TierPlan(label="x").request_fields(in_process=False) == {}
