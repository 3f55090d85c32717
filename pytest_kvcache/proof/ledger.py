"""The ledger: where the KV of every prompt token came from, for each server, by counters of vLLM and LMCache.

vLLM says how many tokens of its prompts it computed, had in its own prefix cache (device), and took from a connector
(external). LMCache says in which of its levels it found the tokens that the connector asked for. Neither knows the
other's part:

- LMCache looks up a prompt from its first token, whether or not vLLM has the beginning itself. Tokens that both have
  are counted by vLLM as device hits, so external tokens are the tokens that LMCache found, less this overlap. No
  counter says whether the overlap is in L1 or L2: external tokens are split in proportion.
- LMCache's split by tokens counts as L1 only tokens that L1 could have served from the first token on; chunks that L1
  held behind a chunk from L2 count as L2. The split by keys says what was really loaded, and is used where it exists.
- vLLM counts a token as external when it asks for the token. Where the load then fails and the policy is to compute the
  token again, vLLM still counts it as external: tokens that LMCache says it could not deliver are taken out of the
  external ones and become `lost`.

LMCache before 0.5.5, as a server, does not split the tokens that it found: these have a source of their own, `unsplit`.

Names are those of vLLM 0.32 and of LMCache 0.5.6 in both of its modes: as a server beside vLLM (`lmcache_mp_*`), or
inside vLLM (`lmcache:*`, from its internal API server). In both modes LMCache is a component beside its vLLM server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pytest_kvcache.telemetry.counters import Counters, by_label, has, lmcache_beside, total
from pytest_kvcache.telemetry.transfers import Transfers, transfers_of

_SOURCE = "vllm:prompt_tokens_by_source_total"
_IN_PROCESS = "lmcache:"
#: Reasons why a chunk that a lookup found in L2 was not loaded. The reason `l1_contended` is no loss: another request
#: was just bringing the chunk to L1.
_LOST = ("not_found", "l1_oom")


@dataclass(frozen=True)
class Tokens:
    """Prompt tokens by where their KV came from. `total` is their sum by construction.

    Args:
        computed: Tokens that the engine computed.
        device: Tokens from vLLM's own prefix cache.
        l1: Tokens from LMCache's CPU RAM.
        l2: Tokens from LMCache's shared storage.
        unsplit: Tokens from LMCache, which does not say whether from L1 or L2.
        other: Tokens from a connector that LMCache did not find.
        lost: Tokens that a lookup found and whose load failed, so that they were computed, or their request failed.
        lost_in_reading: Lost tokens that vLLM had counted as external before.
        l1_found: Tokens in L1 when LMCache was asked, including those that vLLM had itself.
        l2_found: Tokens in L2 when LMCache was asked, including those that vLLM had itself.
        unsplit_found: Tokens in L1 or L2 when LMCache was asked, where LMCache does not say in which.
        requested: Tokens, in whole chunks, that LMCache was asked for.
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
        """Tokens that vLLM reports with an answer as not computed (`cached_tokens`)."""
        return self.device + self.external + self.lost_in_reading

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Ledger:
    """Tokens of every vLLM server, and what its LMCache moved.

    Args:
        servers: Tokens by name of the vLLM server.
        transfers: What LMCache moved, by the same names; zeros for a server without LMCache.
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
        grown: Growth of the counters by component (`vllm-0`, `lmcache-0`, …) from before the first request, with all
            idle, until after the last answer (`counters.growth`), with ranks as one (`counters.ranks_as_one`).
        chunk_tokens: LMCache's chunk size (tokens).
        kv_bytes_per_token: KV of one token in all layers (bytes); None to take the bytes that an in-process LMCache
            wrote to L2 for each stored token, by which bytes read from L2 become tokens.
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
    """Return the tokens as vLLM itself counts them, with all external tokens under `other`."""
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
    # LMCache has one key for each chunk, KV group and tensor-parallel rank.
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
    # Inside vLLM, LMCache is asked only for tokens that vLLM lacks, and counts those retrieved: nothing overlaps.
    requested, hit = (total(counters, f"lmcache:num_{what}_tokens_total") for what in ("requested", "hit"))
    stored = total(counters, "lmcache:num_stored_tokens_total")
    written = total(counters, "lmcache:num_remote_write_bytes_total")
    per_token = kv_bytes_per_token or (written / stored if stored else 0.0)
    read = total(counters, "lmcache:num_remote_read_bytes_total")
    # Where bytes were read and the bytes of a token are not known, all hits may have come from L2.
    l2 = min(hit, read / per_token) if per_token else (hit if read else 0.0)
    return _assign(
        own,
        found=(hit - l2, l2),
        requested=total(counters, "lmcache:num_lookup_tokens_total"),
        lost_of_external=max(0.0, requested - hit),
        lost_of_computed=0.0,
    )


def _in_chunks(inside: Transfers, chunk_tokens: int, kv_bytes_per_token: float | None) -> Transfers:
    """Return the transfers of an LMCache inside vLLM with loads in chunks, since one read of S3 asks for several."""
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
    """Split vLLM's external tokens by the levels in which LMCache found tokens; vLLM's sum of prompt tokens is kept."""
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
