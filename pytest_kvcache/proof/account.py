"""The token account of a run, which exact gates compare (pure)."""

from __future__ import annotations

import hashlib
import json

import pandas as pd

from pytest_kvcache.proof.judge import Proof
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.verdict.token_account import SOURCES, TRANSFERS, TokenAccount


def account_of(rows: pd.DataFrame, proof: Proof) -> TokenAccount | None:
    """Return the account of a run, None where its counters say nothing.

    Args:
        rows: Rows of the run, one for each request (`load.records`).
        proof: Proof of the same run.
    """
    total = proof.ledger.total
    if not total.total:
        return None
    moved = proof.ledger.transfers.values()
    transfers = {name: round(sum(getattr(each, name) for each in moved)) for name in TRANSFERS}
    expected = sum(proof.expected.values(), Tokens())
    return TokenAccount(
        order=_order(rows),
        tokens=_by_source(total),
        transfers={name: count for name, count in transfers.items() if count > 0},
        expected=_by_source(expected) if expected.total else {},
    )


def _by_source(tokens: Tokens) -> dict[str, int]:
    counts = {name: round(getattr(tokens, name)) for name in SOURCES}
    return {name: count for name, count in counts.items() if count > 0}


def _order(rows: pd.DataFrame) -> str:
    """Return a digest of the requests in the order in which each server got them.

    Servers share nothing but L2, so how their requests interleave is left out. The servers of a pair are alike too, and
    the router is free to begin with either, so their names are left out.
    """
    sent = rows[rows["actual_start_s"].notna()].sort_values("actual_start_s", kind="stable")
    sequences = [
        [[int(user), int(number)] for user, number in zip(part["user"], part["round"], strict=True)]
        for _, part in sent.groupby("server")
    ]
    return hashlib.sha256(json.dumps(sorted(sequences)).encode()).hexdigest()[:16]
