"""The whole proof of a run."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pytest_kvcache.proof.judge import Proof, ServedCaches, judge
from pytest_kvcache.proof.oracle_requests import expectable_from_rows, oracle_requests
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.workload.multi_round import MultiRoundQa
from tests.unit.proof import real


def proof(run: real.Run, claim: Claim) -> Proof:
    """Judge a run."""
    workload = MultiRoundQa.model_validate(run.facts["workload"])
    return judge(
        run.rows,
        run.before,
        run.after,
        ServedCaches(claim, chunk_tokens=128, l1_bytes=0.5e9, in_process=run.inside),
        workload=workload,
        context_tokens=workload.context_tokens[0],
        first_user=run.facts["first_user"],
    )


@pytest.mark.parametrize("name", real.WORKING)
def test_a_real_run_is_proved(name: str) -> None:
    """Runs whose tier did its work have no fault, nothing unchecked, nothing to remark, and go into JSON."""
    found = proof(real.load(name), real.claim_of(name))
    assert (found.faults, found.unchecked, found.findings) == ((), (), ())
    assert found.expected["vllm-0"].external == found.ledger.servers["vllm-0"].external
    assert sum(v for k, v in found.figures.items() if k.startswith("share_")) == pytest.approx(1)
    json.dumps(found.facts())


def test_a_real_run_of_an_idle_tier_is_invalid() -> None:
    """The connector that does nothing: a fault, and what was expected instead."""
    found = proof(real.load(real.IDLE), Claim.L2)
    assert len(found.faults) == 1
    assert "83% expected" in found.findings[0]


def test_a_restart_within_the_run_says_only_that() -> None:
    """Counters that were reset prove nothing, so that no other line is drawn from them."""
    run = real.load("pnfs-3500")
    run.after["vllm-0"] = dict.fromkeys(run.after["vllm-0"], 0.0)
    (fault,) = proof(run, Claim.L2).faults
    assert "started anew" in fault


def test_requests_before_the_clock() -> None:
    """The priming is reconstructed: the last users before the start, in turn to the servers."""
    run = real.load("gpu-3500")
    workload = MultiRoundQa.model_validate(run.facts["workload"])
    assert oracle_requests(run.rows, workload, 3500, run.facts["first_user"]) == run.asks()


def rows(*asked: tuple[int, str, int]) -> pd.DataFrame:
    """Return answered requests of users on servers, with prompt tokens."""
    return pd.DataFrame(asked, columns=["user", "server", "prompt_tokens"])


def test_without_an_oracle_the_rows_say_what_can_be_expected() -> None:
    """Who came back, to which server, and whether the device holds it all."""
    short = expectable_from_rows(rows((1, "a", 100), (1, "b", 100)), 256, None)
    assert "no prompt is as long as a chunk" in short.l1
    once = expectable_from_rows(rows((1, "a", 1000), (2, "b", 1000)), 256, None)
    assert "every user asks once" in once.l2
    stays = expectable_from_rows(rows((1, "a", 1000), (1, "a", 1000)), 256, 500.0)
    assert (stays.l1, stays.l2) == ("", "no user changed servers")
    fits = expectable_from_rows(rows((1, "a", 1000), (1, "a", 1000)), 256, 5000.0)
    assert fits.l1 == "the device cache holds all"
    moves = expectable_from_rows(rows((1, "a", 1000), (1, "b", 1000)), 256, 5000.0)
    assert moves.l2 == ""
