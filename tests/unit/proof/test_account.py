"""The token account of a run."""

from __future__ import annotations

import pandas as pd
import pytest

from pytest_kvcache.load.records import OK, RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.proof.account import account_of
from pytest_kvcache.proof.judge import Proof
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.telemetry.transfers import Transfers

SENT = [(1, 1, "vllm-0"), (2, 1, "vllm-1"), (1, 2, "vllm-1"), (2, 2, "vllm-0")]


def proof(**tokens: float) -> Proof:
    """Return the proof of two servers that had the same tokens."""
    each = Tokens(**({"computed": 100.0, "device": 20.4, "l1": 30.6} | tokens))
    return Proof(
        Ledger(
            {"vllm-0": each, "vllm-1": each}, {"vllm-0": Transfers(l2_stored=3, stored_bytes=99), "vllm-1": Transfers()}
        ),
        expected={"vllm-0": Tokens(computed=100.0)},
    )


def rows(sent: list[tuple[int, int, str]]) -> pd.DataFrame:
    """Return requests that were sent one a second, in this order."""
    return to_frame(
        RequestRecord(user=u, round=r, server=s, intended_start_s=n, actual_start_s=n, status=OK)
        for n, (u, r, s) in enumerate(sent)
    )


def test_tokens_and_transfers_are_added_up_over_servers() -> None:
    """An account has whole tokens by source and what was moved, of all servers; what is nothing is left out."""
    found = account_of(rows(SENT), proof())
    assert found is not None
    assert found.tokens == {"computed": 200, "device": 41, "l1": 61}
    assert found.transfers == {"l2_stored": 3, "stored_bytes": 99}
    assert found.expected == {"computed": 100}


def test_without_counters_there_is_no_account() -> None:
    """A run whose counters say nothing has nothing to compare."""
    assert account_of(rows(SENT), proof(computed=0.0, device=0.0, l1=0.0)) is None


SWAPPED = [(u, r, {"vllm-0": "vllm-1", "vllm-1": "vllm-0"}[s]) for u, r, s in SENT]


@pytest.mark.parametrize(
    ("sent", "same"),
    [
        (SENT, True),
        (SWAPPED, True),  # the router began with the other server
        ([SENT[1], SENT[0], *SENT[2:]], True),  # two servers got their requests in another turn
        ([SENT[0], SENT[2], SENT[1], SENT[3]], False),  # one server got its two requests the other way round
        ([*SENT[:3], (2, 2, "vllm-1")], False),  # a request went to the other server
        (SENT[:3], False),
        ([*SENT[:3], (3, 2, "vllm-0")], False),
    ],
)
def test_the_order_is_that_of_each_server(sent: list[tuple[int, int, str]], same: bool) -> None:
    """Boots are alike where each of two interchangeable servers got the same requests in the same order."""
    first, second = account_of(rows(SENT), proof()), account_of(rows(sent), proof())
    assert first is not None
    assert second is not None
    assert (first.order == second.order) == same
