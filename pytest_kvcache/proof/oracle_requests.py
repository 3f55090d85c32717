"""Derive the oracle's requests from the rows of a run, or whether hits can be expected without an oracle (pure)."""

from __future__ import annotations

import pandas as pd

from pytest_kvcache.proof.claims import Expectable
from pytest_kvcache.proof.expected_hits import OracleRequest
from pytest_kvcache.proof.routing import IN_TURN, Routing, primed_servers
from pytest_kvcache.workload.multi_round import MultiRoundQa


def oracle_requests(
    rows: pd.DataFrame,
    workload: MultiRoundQa,
    context_tokens: int,
    first_user: int,
    routing: Routing = IN_TURN,
) -> list[OracleRequest]:
    """Return the requests of an exact multi-round run for the oracle, with those sent before the clock started.

    Each has the server that answered it, whatever the balancer's policy is.
    """
    sent = rows[rows["server"].ne("") & rows["prompt_tokens"].notna()].sort_values("actual_start_s")
    turn = list(dict.fromkeys(sent["server"]))
    if not turn:
        return []
    due = list(workload.due(first_user=first_user, before=True))
    primed = [
        OracleRequest(
            each.user,
            workload.prompt_tokens(context_tokens, each.round),
            workload.answer_tokens,
            server,
            measured=False,
        )
        for each, server in zip(due, primed_servers(routing, turn, len(due)), strict=True)
    ]
    columns = (sent[name] for name in ("user", "prompt_tokens", "generated_tokens", "server"))
    return primed + [OracleRequest(int(u), int(p), int(g), str(s)) for u, p, g, s in zip(*columns, strict=True)]


def expectable_from_rows(rows: pd.DataFrame, chunk_tokens: int, device_tokens: float | None) -> Expectable:
    """Return whether hits can be expected where no oracle knows the prompts: by who came back, and to which server.

    Args:
        rows: Rows of the run, one for each request.
        chunk_tokens: LMCache's chunk size (tokens).
        device_tokens: Size of each device cache (tokens), None where it is not known.
    """
    done = rows[rows["prompt_tokens"].notna()]
    if done.empty or float(done["prompt_tokens"].max()) < chunk_tokens:
        why = f"no prompt is as long as a chunk of LMCache ({chunk_tokens} tokens)"
        return Expectable(l1=why, l2=why)
    if not done["user"].duplicated().any():
        why = "every user asks once, so that no prompt comes back for certain"
        return Expectable(l1=why, l2=why)
    moves = (done.groupby("user")["server"].nunique() > 1).any()
    stays = done.duplicated(["user", "server"]).any()
    longest = done.groupby(["server", "user"])["prompt_tokens"].max().groupby("server").sum()
    fits = device_tokens is not None and float(longest.max()) <= device_tokens
    l1 = "" if stays and not fits else "the device cache holds all" if fits else "no user came back to the same server"
    return Expectable(l1=l1, l2="" if moves else "no user changed servers")
