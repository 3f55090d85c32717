"""Where the KV of each single request came from, as far as it can be told.

An answer tells how many tokens of its prompt were cached, not where. Where the workload's prompts are known, the
expected hits of an LRU hierarchy say how many of them were on the device and in which level of LMCache; they are right
to the token where requests do not overlap. Elsewhere the tokens are `cached`, and no more.
"""

from __future__ import annotations

import json

import pandas as pd
from pydantic import ValidationError

from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.proof import expected_hits
from pytest_kvcache.proof.expected_hits import Hierarchy
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.proof.oracle_requests import oracle_requests
from pytest_kvcache.proof.routing import Routing
from pytest_kvcache.report.html.loads import Load
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.cache_sizes import DeviceCache, device_cache, kv_bytes_per_token
from pytest_kvcache.telemetry.counters import ranks_as_one
from pytest_kvcache.workload.multi_round import MultiRoundQa

_UNLIMITED = 1e12


def sizes(load: Load) -> tuple[DeviceCache | None, float | None, float | None]:
    """Return a server's device cache, its L1 in tokens, and the KV bytes of a token; None for what is not known."""
    after = ranks_as_one(load.facts.load.counters_after)
    keys = load.facts.comparability
    try:
        chunk, l1_bytes = int(keys["serving.chunk_tokens"]), float(keys["serving.l1_size_gb"]) * 2**30
    except (KeyError, ValueError):
        return device_cache(after), None, None
    size = kv_bytes_per_token(after, chunk_tokens=chunk)
    offloads = claim_of(load) is not Claim.DEVICE
    return device_cache(after), l1_bytes / size if size and offloads else None, size


def claim_of(load: Load) -> Claim:
    """Return which levels a tier had, by what was expected of it and by what was found."""
    sums = [sum(each.values(), Tokens()) for each in (load.expected, load.measured)]
    if any(tokens.l2 or tokens.l2_found for tokens in sums):
        return Claim.L2
    return Claim.L1 if any(tokens.offloaded or tokens.requested for tokens in sums) else Claim.DEVICE


def by_request(load: Load) -> pd.DataFrame:
    """Return the prompt tokens of each answered request by source, with the index of `load.answered`.

    Returns:
        `computed`, and `device`, `L1` and `L2` where the levels are known, else `cached`.
    """
    done = load.answered
    prompt, cached = (done[name].astype("float64").fillna(0.0) for name in ("prompt_tokens", "cached_tokens"))
    found = pd.DataFrame({"computed": (prompt - cached).clip(lower=0)})
    told = _expected(load)
    if told is None:
        return found.assign(cached=cached)
    told = told.reindex(done.index).fillna(0.0)
    device = told["device"].clip(upper=cached)
    offloaded = told["l1"] + told["l2"]
    l2_share = (told["l2"] / offloaded.where(offloaded > 0)).fillna(1.0 if claim_of(load) is Claim.L2 else 0.0)
    rest = cached - device
    if claim_of(load) is Claim.DEVICE:
        return found.assign(device=cached, L1=0.0, L2=0.0)
    return found.assign(device=device, L1=rest * (1 - l2_share), L2=rest * l2_share)


def _expected(load: Load) -> pd.DataFrame | None:
    """Return what an LRU hierarchy gives each request: columns `device`, `l1`, `l2`; None where that is not known."""
    device, l1_tokens, _ = sizes(load)
    if device is None or load.rows.empty:
        return None
    try:
        plan = LoadPlan.model_validate_json(json.dumps(load.facts.settings))
        chunk = int(load.facts.comparability["serving.chunk_tokens"])
    except (ValidationError, KeyError, ValueError):
        return None
    workload = plan.workload
    if not isinstance(workload, MultiRoundQa) or workload.mode != "exact":
        return None
    routing = Routing(primed_on=tuple(load.facts.load.primed_on))
    asks = oracle_requests(load.rows, workload, plan.context_tokens, plan.first_user, routing)
    sent = load.rows[load.rows["server"].ne("") & load.rows["prompt_tokens"].notna()].sort_values("actual_start_s")
    caches = Hierarchy(
        claim_of(load),
        block_tokens=device.block_tokens,
        device_blocks=device.blocks,
        chunk_tokens=chunk,
        l1_tokens=l1_tokens or _UNLIMITED,
        shared_tokens=workload.shared_prompt_tokens,
        inside=load.facts.comparability.get("serving.lmcache_mode") == "in-process",
    )
    requests = expected_hits.simulate(asks, caches).requests if asks else ()
    if len(requests) != len(sent):
        return None
    return pd.DataFrame(
        {"device": [r.device for r in requests], "l1": [r.l1 for r in requests], "l2": [r.l2 for r in requests]},
        index=sent.index,
    )
