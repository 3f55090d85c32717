"""Prove one run in one call: readings, ledger, balance, claim and expected hits (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from pytest_kvcache.proof import claims, expected_hits
from pytest_kvcache.proof.balance import balance, client_tokens
from pytest_kvcache.proof.breakdown import components
from pytest_kvcache.proof.claims import ClaimCheck, Expectable
from pytest_kvcache.proof.expected_hits import Expected, Hierarchy
from pytest_kvcache.proof.hit_differences import hit_differences, warm_start_faults
from pytest_kvcache.proof.ledger import Ledger, Tokens, build_ledger
from pytest_kvcache.proof.oracle_requests import expectable_from_rows, oracle_requests
from pytest_kvcache.proof.other_traffic import OtherTraffic, identity, other_traffic
from pytest_kvcache.proof.routing import IN_TURN, Routing, RoutingCheck, check_routing, idle_is_fault
from pytest_kvcache.proof.storage_account import AccountProof
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry import counters
from pytest_kvcache.telemetry.cache_sizes import DeviceCache, device_cache, kv_bytes_per_token
from pytest_kvcache.telemetry.counters import Counters
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.multi_round import MultiRoundQa

_UNLIMITED = 1e12


@dataclass(frozen=True)
class ServedCaches:
    """The caches of a profile and tier, as the proof needs them.

    Args:
        claim: Claim of the tier.
        chunk_tokens: LMCache's chunk size (tokens).
        l1_bytes: CPU RAM of each server's LMCache, for all of its ranks together (bytes).
        in_process: Whether LMCache runs inside vLLM.
    """

    claim: Claim
    chunk_tokens: int
    l1_bytes: float
    in_process: bool = False


@dataclass(frozen=True)
class Proof:
    """The proof of one run.

    Args:
        ledger: Ledger of where every prompt token came from.
        expected: Expected tokens by server, of an LRU hierarchy; empty where the workload's prompts are not known.
        faults: Why the run is invalid, a line each.
        unchecked: What could not be checked and why, a line each.
        findings: Where measured hits are far from expected ones, a line each.
        figures: Figures to be stored with those of the run: shares by source, parts of TTFT.
        storage: The storage's own account, compared with LMCache's.
        routing: Balancer of the run.
        routed: Where it sent the requests.
        others: What others did on a deployment in the time of the run; None where the servers were the run's own.
    """

    ledger: Ledger
    expected: Mapping[str, Tokens] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    storage: AccountProof = field(default_factory=AccountProof)
    routing: Routing = field(default_factory=Routing)
    routed: RoutingCheck = field(default_factory=RoutingCheck)
    others: OtherTraffic | None = None

    def with_storage(self, storage: AccountProof) -> Proof:
        """Return the proof with the storage's own account."""
        check = storage.check
        return replace(
            self,
            faults=(*self.faults, *check.faults),
            unchecked=(*self.unchecked, *check.unchecked),
            findings=(*self.findings, *check.findings),
            storage=storage,
        )

    def facts(self) -> dict[str, Any]:
        """Return the proof for `run.json`: tokens by server and source, and the lines."""
        return {
            "servers": {name: vars(tokens) for name, tokens in self.ledger.servers.items()},
            "moved": {name: vars(moved) for name, moved in self.ledger.transfers.items()},
            "expected": {name: vars(tokens) for name, tokens in self.expected.items()},
            "unchecked": list(self.unchecked),
            "findings": list(self.findings),
            "figures": dict(self.figures),
            "storage": self.storage.facts(),
            "routing": self.routed.facts(self.routing),
            **({} if self.others is None else {"other_traffic": self.others.facts()}),
        }


def judge(
    rows: pd.DataFrame,
    before: Mapping[str, Counters],
    after: Mapping[str, Counters],
    served: ServedCaches,
    *,
    workload: Workload,
    context_tokens: int,
    first_user: int = 0,
    beyond_tokens: float = 0.0,
    routing: Routing = IN_TURN,
    shared: float | None = None,
) -> Proof:
    """Return what the counters of a run prove.

    Args:
        rows: Rows of the run, one for each request (`load.records`).
        before: Counters by component, read right before the clock starts.
        after: Counters by component, read after the last answer.
        served: Caches that served the run.
        workload: Workload that was sent.
        context_tokens: Context length of the run (tokens).
        first_user: Number before that of the first user.
        beyond_tokens: Prompt tokens of requests that were sent and are not in `rows`.
        routing: Balancer of the run.
        shared: Share of the prompt tokens that others may send to these servers; None where they are the run's own, so
            that any difference between counters and answers is a fault.
    """
    unread = counters.faults(before, after)
    before, after = counters.ranks_as_one(before), counters.ranks_as_one(after)
    grown = counters.growth(before, after)
    size = kv_bytes_per_token(after, chunk_tokens=served.chunk_tokens)
    ledger = build_ledger(grown, chunk_tokens=served.chunk_tokens, kv_bytes_per_token=size)
    if unread:
        return Proof(ledger, faults=tuple(unread))
    whole, can = _expected(
        rows,
        served,
        workload=workload,
        context_tokens=context_tokens,
        first_user=first_user,
        device=device_cache(after),
        size=size,
        routing=routing,
    )
    routed = check_routing(rows, routing)
    if shared is None:
        others = None
        unbalanced = balance(ledger, client_tokens(rows, beyond_tokens=beyond_tokens), beyond_tokens=beyond_tokens)
        unchecked: tuple[str, ...] = ()
    else:
        others = other_traffic(rows, before, after, tolerance=shared, beyond_tokens=beyond_tokens)
        same = identity(rows, before, after, frozenset(ledger.servers))
        unbalanced = [*same.faults, *others.faults]
        unchecked = (*others.unchecked, *same.unchecked)
    if shared is not None and not ledger.servers:
        checked = ClaimCheck(unchecked=(f"that KV came from {served.claim}: no counters of a server are read",))
    else:
        idle = idle_is_fault(routed.requests, routing.promises)
        checked = claims.check_claim(served.claim, ledger, can, idle_is_fault=idle, routed_here=shared is None)
    leftovers = warm_start_faults(whole.servers, ledger) if whole is not None and served.claim is Claim.L2 else []
    return Proof(
        ledger,
        expected=whole.servers if whole is not None else {},
        faults=(*leftovers, *unbalanced, *routed.faults, *checked.faults),
        unchecked=(*routed.unchecked, *checked.unchecked, *unchecked),
        findings=tuple(hit_differences(whole.servers, ledger)) if whole is not None else (),
        figures=ledger.as_figures() | components(rows, grown),
        routing=routing,
        routed=routed,
        others=others,
    )


def _expected(
    rows: pd.DataFrame,
    served: ServedCaches,
    *,
    workload: Workload,
    context_tokens: int,
    first_user: int,
    device: DeviceCache | None,
    size: float | None,
    routing: Routing,
) -> tuple[Expected | None, Expectable]:
    """Return the hits of an LRU hierarchy, None where prompts or sizes are unknown, and which hits can be expected."""
    unknown = expectable_from_rows(rows, served.chunk_tokens, device.tokens if device else None)
    if not isinstance(workload, MultiRoundQa) or workload.mode != "exact" or device is None:
        return None, unknown
    asks = oracle_requests(rows, workload, context_tokens, first_user, routing)
    if not asks:
        return None, unknown
    caches = Hierarchy(
        served.claim,
        block_tokens=device.block_tokens,
        device_blocks=device.blocks,
        chunk_tokens=served.chunk_tokens,
        l1_tokens=served.l1_bytes / size if size else _UNLIMITED,
        shared_tokens=workload.shared_prompt_tokens,
        inside=served.in_process,
    )
    whole = expected_hits.simulate(asks, caches)
    return whole, expected_hits.expectable(whole, caches, asks)
