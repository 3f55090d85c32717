"""The ledger: from counters of vLLM and LMCache, where the KV of every prompt token came from, a server a line.

vLLM says how many tokens of its prompts it computed, had in its own prefix cache (device), and took from a connector
(external). LMCache says in which of its levels it found what the connector asked for. Neither knows the other's part:

- LMCache looks up a prompt from its first token, whether or not vLLM has the beginning itself. What both have is
  counted by vLLM as a device hit, so external tokens are what LMCache found less that overlap. Which of L1 and L2 the
  overlap is part of is in no counter: external tokens are split in proportion.
- LMCache's split by tokens counts as L1 only what L1 could have served from the first token on; chunks that L1 held
  behind one that came from L2 count as L2. The split by keys says what was really loaded, and is used where it is.
- vLLM counts a token as external when it asks for it. Where the load fails then and the policy is to compute it again,
  vLLM still says external: what LMCache says it could not deliver is taken out of that and becomes `lost`.

LMCache before 0.5.5, as a server, does not split what it found: those tokens have a source of their own, `unsplit`.

Names are those of vLLM 0.32 and LMCache 0.5.6, of both of LMCache's modes: a server beside vLLM (`lmcache_mp_*`), or
inside vLLM (`lmcache:*`, from its internal API server); either is a component beside the server's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pytest_kvcache.telemetry.counters import Counters, by_label, has, lmcache_beside, total
from pytest_kvcache.telemetry.transfers import Transfers, transfers_of

_SOURCE = "vllm:prompt_tokens_by_source_total"
_IN_PROCESS = "lmcache:"
#: Why a chunk that a lookup found in L2 was not loaded. The third reason, `l1_contended`, is none: another request was
#: just bringing the chunk to L1.
_LOST = ("not_found", "l1_oom")


@dataclass(frozen=True)
class Tokens:
    """Prompt tokens by where their KV came from. `total` is their sum by construction.

    Args:
        computed: By the engine.
        device: From vLLM's own prefix cache.
        l1: From LMCache's CPU RAM.
        l2: From LMCache's shared storage.
        unsplit: From LMCache, which does not say whether from L1 or L2.
        other: From a connector, and LMCache did not find them.
        lost: A lookup found them and the load failed, so that they were computed, or their request failed.
        lost_in_reading: Of those, lost after vLLM had counted them as external.
        l1_found: In L1 when LMCache was asked, also those that vLLM had itself.
        l2_found: In L2 when LMCache was asked, also those that vLLM had itself.
        unsplit_found: In one of the two, where LMCache does not say in which.
        requested: Whole chunks that LMCache was asked for.
    """

    computed: float = 0.0
    device: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    unsplit: float = 0.0
    other: float = 0.0
    lost: float = 0.0
    lost_in_reading: float = 0.0
    l1_found: float = 0.0
    l2_found: float = 0.0
    unsplit_found: float = 0.0
    requested: float = 0.0

    @property
    def total(self) -> float:
        """All prompt tokens."""
        return self.computed + self.device + self.external + self.lost

    @property
    def external(self) -> float:
        """Tokens that a connector delivered."""
        return self.offloaded + self.other

    @property
    def offloaded(self) -> float:
        """Tokens that LMCache delivered, from whichever level."""
        return self.l1 + self.l2 + self.unsplit

    @property
    def found(self) -> float:
        """Tokens that LMCache found, in whichever level."""
        return self.l1_found + self.l2_found + self.unsplit_found

    @property
    def cached(self) -> float:
        """Tokens that were not computed as vLLM reports them with an answer (`cached_tokens`)."""
        return self.device + self.external + self.lost_in_reading

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Ledger:
    """Tokens of every vLLM server, and what its LMCache moved.

    Args:
        servers: By name of the vLLM server.
        transfers: By the same names; nothing for a server without LMCache.
    """

    servers: Mapping[str, Tokens]
    transfers: Mapping[str, Transfers]

    @property
    def total(self) -> Tokens:
        """The sum over all servers."""
        return sum(self.servers.values(), Tokens())

    def as_figures(self) -> dict[str, float]:
        """Return shares of all prompt tokens (0 to 1) by source, for storing with a run's figures.

        Where LMCache does not tell L1 from L2 there is `share_unsplit` in place of both.
        """
        tokens = self.total
        whole = tokens.total or 1.0
        levels = ("unsplit",) if tokens.unsplit else ("l1", "l2")
        names = ("computed", "device", *levels, "other", "lost")
        return {f"share_{name}": getattr(tokens, name) / whole for name in names}


def build_ledger(
    grown: Mapping[str, Counters], *, chunk_tokens: int, kv_bytes_per_token: float | None = None
) -> Ledger:
    """Return the ledger of the time between two readings.

    Args:
        grown: By component (`vllm-0`, `lmcache-0`, …), what its counters grew by (`readings.growth`) from when all was
            idle before the first request until after the last answer; ranks as one (`readings.ranks_as_one`).
        chunk_tokens: LMCache's chunk size.
        kv_bytes_per_token: Of one token in all layers; without it, what in-process LMCache read from L2 is turned into
            tokens by what it wrote to L2 for each stored token.
    """
    servers: dict[str, Tokens] = {}
    moves: dict[str, Transfers] = {}
    for name, counters in grown.items():
        if not name.startswith("vllm"):
            continue
        beside = grown.get(lmcache_beside(name))
        own = _engine(counters)
        if beside is None:
            servers[name], moves[name] = own, Transfers()
        elif any(key.startswith(_IN_PROCESS) for key in beside):
            servers[name] = _in_process(own, beside, kv_bytes_per_token)
            moves[name] = _in_chunks(transfers_of(beside), chunk_tokens, kv_bytes_per_token)
        else:
            servers[name], moves[name] = _multi_process(own, beside, chunk_tokens), transfers_of(beside)
    return Ledger(servers=servers, transfers=moves)


def _engine(grown: Counters) -> Tokens:
    """Return what vLLM itself says, all of its external tokens under `other`."""
    if has(grown, _SOURCE):
        source = by_label(grown, _SOURCE, "source")
        return Tokens(
            computed=source.get("local_compute", 0.0),
            device=source.get("local_cache_hit", 0.0),
            other=source.get("external_kv_transfer", 0.0),
        )
    # vLLM before 0.17 has no split by source.
    device, external = (total(grown, f"vllm:{kind}prefix_cache_hits_total") for kind in ("", "external_"))
    return Tokens(total(grown, "vllm:prompt_tokens_total") - device - external, device, other=external)


def _multi_process(own: Tokens, beside: Counters, chunk_tokens: int) -> Tokens:
    hit = total(beside, "lmcache_mp_lookup_hit_tokens_total")
    keys = [total(beside, f"lmcache_mp_lookup_hit_{level}_keys_total") for level in ("l1", "l2")]
    split = keys if sum(keys) else [total(beside, f"lmcache_mp_lookup_hit_{lv}_tokens_total") for lv in ("l1", "l2")]
    in_l2 = hit * split[1] / sum(split) if sum(split) else 0.0
    unsplit = hit if not sum(split) else 0.0
    # One key for each chunk, KV group and tensor-parallel rank.
    tokens_per_key = hit / sum(keys) if sum(keys) else float(chunk_tokens)
    not_read = total(beside, "lmcache_mp_l1_read_failure_chunks_total", during="l1_retrieve") * tokens_per_key
    reasons = by_label(beside, "lmcache_mp_l2_prefetch_failure_chunks_total", "reason")
    not_loaded = sum(reasons.get(reason, 0.0) for reason in _LOST) * tokens_per_key
    return _assign(
        own,
        found=(hit - in_l2 - unsplit, in_l2),
        unsplit=unsplit,
        requested=total(beside, "lmcache_mp_lookup_requested_tokens_total"),
        lost_of_external=not_read,
        lost_of_computed=not_loaded,
    )


def _in_process(own: Tokens, counters: Counters, kv_bytes_per_token: float | None) -> Tokens:
    # Here only what vLLM does not have is asked for, and what is retrieved is known: nothing overlaps.
    requested, hit = (total(counters, f"lmcache:num_{what}_tokens_total") for what in ("requested", "hit"))
    stored = total(counters, "lmcache:num_stored_tokens_total")
    written = total(counters, "lmcache:num_remote_write_bytes_total")
    per_token = kv_bytes_per_token or (written / stored if stored else 0.0)
    read = total(counters, "lmcache:num_remote_read_bytes_total")
    # Bytes were read and their size a token is not known: all of the hit may have come from L2.
    l2 = min(hit, read / per_token) if per_token else (hit if read else 0.0)
    return _assign(
        own,
        found=(hit - l2, l2),
        requested=total(counters, "lmcache:num_lookup_tokens_total"),
        lost_of_external=max(0.0, requested - hit),
        lost_of_computed=0.0,
    )


def _in_chunks(inside: Transfers, chunk_tokens: int, kv_bytes_per_token: float | None) -> Transfers:
    """Return what an LMCache inside vLLM loaded in chunks: one read of S3 asks for several."""
    if not kv_bytes_per_token:
        return inside
    return replace(inside, l2_loaded=round(inside.loaded_bytes / (kv_bytes_per_token * chunk_tokens)))


def _assign(
    own: Tokens,
    *,
    found: tuple[float, float],
    requested: float,
    lost_of_external: float,
    lost_of_computed: float,
    unsplit: float = 0.0,
) -> Tokens:
    """Split vLLM's external tokens by what LMCache found; the sum stays what vLLM counted."""
    not_read = min(own.other, lost_of_external)
    not_loaded = min(own.computed, lost_of_computed)
    external = own.other - not_read
    known = min(external, sum(found))
    l2_share = found[1] / sum(found) if sum(found) else 0.0
    not_split = min(external - known, unsplit)
    return Tokens(
        computed=own.computed - not_loaded,
        device=own.device,
        l1=known - known * l2_share,
        l2=known * l2_share,
        unsplit=not_split,
        other=external - known - not_split,
        lost=not_read + not_loaded,
        lost_in_reading=not_read,
        l1_found=found[0],
        l2_found=found[1],
        unsplit_found=unsplit,
        requested=requested,
    )
