"""Names of the components of a pair, as logs, counters and tables use them."""

from __future__ import annotations


def server_name(index: int) -> str:
    """Return the name of the `index`-th vLLM server (`vllm-0`)."""
    return f"vllm-{index}"


def lmcache_name(index: int, rank: int = 0) -> str:
    """Return the name of the LMCache of the `index`-th server, or of one of its further ranks (`lmcache-0.1`)."""
    return f"lmcache-{index}" if rank == 0 else f"lmcache-{index}.{rank}"
