"""Sizes of caches, as the counters of vLLM and LMCache tell them (pure functions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_kvcache.telemetry.counters import Counters, by_label, has, total


@dataclass(frozen=True)
class DeviceCache:
    """vLLM's own prefix cache.

    Args:
        block_tokens: Size of a block.
        blocks: Number of blocks.
    """

    block_tokens: int
    blocks: int

    @property
    def tokens(self) -> float:
        """Size of the whole cache."""
        return float(self.block_tokens * self.blocks)


def device_cache(counters: Mapping[str, Counters]) -> DeviceCache | None:
    """Return the device cache of the servers, which are alike; None where no server says its size.

    Args:
        counters: Counters by component.
    """
    info = "vllm:cache_config_info"
    for own in counters.values():
        if has(own, info):
            found = [next(iter(by_label(own, info, label)), "") for label in ("block_size", "num_gpu_blocks")]
            if all(text.isdigit() for text in found):
                return DeviceCache(int(found[0]), int(found[1]))
    return None


def kv_bytes_per_token(counters: Mapping[str, Counters], *, chunk_tokens: int) -> float | None:
    """Return the bytes of a token's KV in all ranks, as LMCache has it in L1; None where no LMCache has any.

    Args:
        counters: Counters by component.
        chunk_tokens: LMCache's chunk size.
    """
    for own in counters.values():
        held = total(own, "lmcache_mp_l1_write_chunks_total") - total(own, "lmcache_mp_l1_evicted_chunks_total")
        held += total(own, "lmcache:local_cpu_hot_cache_count")
        used = total(own, "lmcache_mp_l1_memory_usage_bytes") + total(own, "lmcache:local_cache_usage")
        if held > 0 and used > 0:
            return used / held / chunk_tokens
    return None
