"""Compare the ledger with what the client was told: each server's prompt tokens and cached tokens must be the same.

Answered requests have no tolerance. vLLM counts a prompt when the first token of its answer is there, and the client
reads the usage after the last token; the counters are read before the first request and after the last answer, with
nothing under way. In every real run that was examined both sums were equal to the token. The tolerance covers what
cannot be known:

- A request that failed or was cut off has no usage, and may or may not have been counted: the tolerance is its intended
  prompt, or the longest prompt of the run where the intended one is not known.
- The last answer of a server may be one token long: vLLM may deliver this token just before it counts the prompt.
- A run that ended early had sent requests beyond its last whole round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pytest_kvcache.proof.ledger import Ledger

_OK = "ok"
_ROUNDING = 0.5


@dataclass(frozen=True)
class ClientTokens:
    """What the client knows of one server.

    Args:
        requests: Number of answered requests.
        prompt: Prompt tokens of these requests.
        cached: Prompt tokens that the server said it did not compute.
        below: Prompt tokens by which the server may have counted less.
        above: Prompt tokens by which the server may have counted more.
        says_cached: Whether every answer said how much was cached.
    """

    requests: int = 0
    prompt: float = 0.0
    cached: float = 0.0
    below: float = 0.0
    above: float = 0.0
    says_cached: bool = True


def client_tokens(rows: pd.DataFrame, *, beyond_tokens: float = 0.0) -> dict[str, ClientTokens]:
    """Return the client's sums by server.

    Args:
        rows: Rows of the run, one for each request (`load.records`).
        beyond_tokens: Prompt tokens of requests that were sent and are not in `rows`.
    """
    done = rows[(rows["status"] == _OK) & rows["prompt_tokens"].notna()]
    unknown = rows[rows["actual_start_s"].notna() & ~rows.index.isin(done.index)]
    longest = float(done["prompt_tokens"].max()) if len(done) else 0.0
    open_tokens = float(unknown["intended_prompt_tokens"].astype("float64").fillna(longest).sum()) + beyond_tokens
    found = {}
    for server, own in done.groupby("server"):
        last = own.sort_values("last_token_s").iloc[-1]
        late = float(last["prompt_tokens"]) if last["generated_tokens"] <= 1 else 0.0
        found[str(server)] = ClientTokens(
            requests=len(own),
            prompt=float(own["prompt_tokens"].sum()),
            cached=float(own["cached_tokens"].fillna(0).sum()),
            below=late,
            above=open_tokens,
            says_cached=bool(own["cached_tokens"].notna().all()),
        )
    return found


def balance(ledger: Ledger, client: Mapping[str, ClientTokens], *, beyond_tokens: float = 0.0) -> list[str]:
    """Return a line for each server whose counters do not fit what the client was told.

    Args:
        ledger: Ledger from the counters.
        client: Sums of the client by server; a server that answered nothing may be absent.
        beyond_tokens: Prompt tokens of requests that were sent and are not in the rows.
    """
    if "" in client:
        return [f"{client[''].requests} answers do not name their server: the ledger cannot be held against them"]
    found = []
    for server in sorted({*ledger.servers, *client}):
        told = client.get(server, ClientTokens(above=max((c.above for c in client.values()), default=beyond_tokens)))
        if server not in ledger.servers:
            found.append(f"{server} answered {told.requests} requests and has no counters")
            continue
        tokens = ledger.servers[server]
        found += _line(server, "prompt tokens", tokens.total, told.prompt, told)
        if told.says_cached:
            found += _line(server, "tokens from a cache", tokens.cached, told.cached, told)
    return found


def _line(server: str, what: str, counted: float, told: float, room: ClientTokens) -> list[str]:
    if told - room.below - _ROUNDING <= counted <= told + room.above + _ROUNDING:
        return []
    cause = (
        "somebody else used the server, or answers are missing from the rows"
        if counted > told
        else "the server was started anew, or its counters are of another one"
    )
    tolerance = f" (tolerance -{room.below:.0f}, +{room.above:.0f})" if room.below or room.above else ""
    return [f"{server} counted {counted:.0f} {what}, its answers say {told:.0f}{tolerance}: {cause}"]
