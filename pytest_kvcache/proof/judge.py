"""All of the proof of one run in one call: readings, ledger, balance, claim, expected hits (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pytest_kvcache.proof import claims, expected, readings
from pytest_kvcache.proof.balance import balance, client_tokens
from pytest_kvcache.proof.claims import Claim, Expectable
from pytest_kvcache.proof.expected import Ask, Expected, Hierarchy
from pytest_kvcache.proof.gaps import gaps, warm
from pytest_kvcache.proof.ledger import Ledger, Tokens, build_ledger
from pytest_kvcache.proof.parts import components
from pytest_kvcache.proof.readings import Counters, by_label, growth, has, total
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.multi_round import MultiRoundQa

_UNLIMITED = 1e12


@dataclass(frozen=True)
class Served:
    """What of a profile and tier the proof needs.

    Args:
        claim: Of the tier.
        chunk_tokens: LMCache's chunk size.
        l1_bytes: CPU RAM of each LMCache.
        in_process: Whether LMCache runs inside vLLM.
    """

    claim: Claim
    chunk_tokens: int
    l1_bytes: float
    in_process: bool = False


@dataclass(frozen=True)
class Proof:
    """What came of it.

    Args:
        ledger: Where every prompt token came from.
        expected: By server, what an LRU hierarchy gives; empty where the workload's prompts are not known.
        faults: Why the run is invalid, a line each.
        unchecked: What could not be checked and why.
        findings: Where measured hits are far from expected ones.
        figures: To be stored with the run's: shares by source, parts of TTFT.
    """

    ledger: Ledger
    expected: Mapping[str, Tokens] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return it for `run.json`: tokens by server and source, the lines."""
        return {
            "servers": {name: vars(tokens) for name, tokens in self.ledger.servers.items()},
            "moved": {name: vars(moved) for name, moved in self.ledger.moved.items()},
            "expected": {name: vars(tokens) for name, tokens in self.expected.items()},
            "unchecked": list(self.unchecked),
            "findings": list(self.findings),
            "figures": dict(self.figures),
        }


def judge(
    rows: pd.DataFrame,
    before: Mapping[str, Counters],
    after: Mapping[str, Counters],
    served: Served,
    *,
    workload: Workload,
    context_tokens: int,
    first_user: int = 0,
    beyond_tokens: float = 0.0,
) -> Proof:
    """Return what the counters of a run prove.

    Args:
        rows: A row a request (`load.records`).
        before: Counters by component, read right before the clock.
        after: Likewise after the last answer.
        served: How it was served.
        workload: What was sent.
        context_tokens: At which length.
        first_user: Users were numbered from the one after it.
        beyond_tokens: Prompt tokens of requests that were sent and are not in `rows`.
    """
    unread = readings.faults(before, after)
    size = _bytes_per_token(after, served.chunk_tokens)
    ledger = build_ledger(before, after, chunk_tokens=served.chunk_tokens, kv_bytes_per_token=size)
    if unread:
        return Proof(ledger, faults=tuple(unread))
    grown = {name: growth(before.get(name, {}), after[name]) for name in after}
    whole, asks, caches = _expected(
        rows, after, served, workload=workload, context_tokens=context_tokens, first_user=first_user, size=size
    )
    can = (
        expected.expectable(whole, caches, asks)
        if whole is not None and caches is not None
        else expectable_from_rows(rows, served.chunk_tokens, _device_tokens(after))
    )
    checked = claims.check(served.claim, ledger, can)
    unbalanced = balance(ledger, client_tokens(rows, beyond_tokens=beyond_tokens), beyond_tokens=beyond_tokens)
    leftovers = warm(whole.servers, ledger) if whole is not None and served.claim is Claim.L2 else []
    return Proof(
        ledger,
        expected=whole.servers if whole is not None else {},
        faults=(*leftovers, *unbalanced, *checked.faults),
        unchecked=checked.unchecked,
        findings=tuple(gaps(whole.servers, ledger)) if whole is not None else (),
        figures=ledger.as_figures() | components(rows, grown),
    )


def asks_of(rows: pd.DataFrame, workload: MultiRoundQa, context_tokens: int, first_user: int) -> list[Ask]:
    """Return the requests of an exact multi-round run for the oracle, those before the clock among them.

    Those were sent one by one in turn to the servers, so that the last of them went to the server before the one that
    answered the first measured request.
    """
    sent = rows[rows["server"].ne("") & rows["prompt_tokens"].notna()].sort_values("actual_start_s")
    turn = list(dict.fromkeys(sent["server"]))
    if not turn:
        return []
    due = list(workload.due(first_user=first_user, before=True))
    primed = [
        Ask(
            each.user,
            workload.prompt_tokens(context_tokens, each.round),
            workload.answer_tokens,
            turn[(i - len(due)) % len(turn)],
            measured=False,
        )
        for i, each in enumerate(due)
    ]
    columns = (sent[name] for name in ("user", "prompt_tokens", "generated_tokens", "server"))
    return primed + [Ask(int(u), int(p), int(g), str(s)) for u, p, g, s in zip(*columns, strict=True)]


def expectable_from_rows(rows: pd.DataFrame, chunk_tokens: int, device_tokens: float | None) -> Expectable:
    """Return whether hits can be expected where no oracle knows the prompts: by who came back, and to which server.

    Args:
        rows: A row a request.
        chunk_tokens: LMCache's chunk size.
        device_tokens: Size of each device cache, None where not known.
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


def _expected(
    rows: pd.DataFrame,
    after: Mapping[str, Counters],
    served: Served,
    *,
    workload: Workload,
    context_tokens: int,
    first_user: int,
    size: float | None,
) -> tuple[Expected | None, list[Ask], Hierarchy | None]:
    cache = _device(after)
    if not isinstance(workload, MultiRoundQa) or workload.mode != "exact" or cache is None:
        return None, [], None
    caches = Hierarchy(
        served.claim,
        block_tokens=cache[0],
        device_blocks=cache[1],
        chunk_tokens=served.chunk_tokens,
        l1_tokens=served.l1_bytes / size if size else _UNLIMITED,
        shared_tokens=workload.shared_prompt_tokens,
        l1_keeps_loaded=served.in_process,
    )
    asks = asks_of(rows, workload, context_tokens, first_user)
    return (expected.simulate(asks, caches), asks, caches) if asks else (None, [], None)


def _device(after: Mapping[str, Counters]) -> tuple[int, int] | None:
    """Return vLLM's block size (tokens) and number of blocks as it says them itself, None where it does not."""
    info = "vllm:cache_config_info"
    for counters in after.values():
        if has(counters, info):
            found = [next(iter(by_label(counters, info, label)), "") for label in ("block_size", "num_gpu_blocks")]
            if all(text.isdigit() for text in found):
                return int(found[0]), int(found[1])
    return None


def _device_tokens(after: Mapping[str, Counters]) -> float | None:
    cache = _device(after)
    return None if cache is None else float(cache[0] * cache[1])


def _bytes_per_token(after: Mapping[str, Counters], chunk_tokens: int) -> float | None:
    """Return the size of a token's KV as an LMCache server has it in L1, None where it has none."""
    for counters in after.values():
        held = total(counters, "lmcache_mp_l1_write_chunks_total") - total(
            counters, "lmcache_mp_l1_evicted_chunks_total"
        )
        used = total(counters, "lmcache_mp_l1_memory_usage_bytes")
        if held > 0 and used > 0:
            return used / held / chunk_tokens
    return None
