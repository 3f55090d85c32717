"""Refuse what the connector cannot do, before the server is up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Serving:
    """What vLLM says of its KV cache.

    Args:
        block_tokens: Tokens of a block.
        blocks: Number of blocks, None where vLLM does not say it this early.
        kinds: Kind of cache of each KV cache group, as vLLM's class is called; empty where vLLM does not say.
        context_parallel: Ranks that share a sequence while decoding.
        identity: What the bytes of a block depend on, beside the model.
    """

    block_tokens: int
    blocks: int | None = None
    kinds: tuple[str, ...] = ()
    context_parallel: int = 1
    identity: str = ""


def refuse(config: Any, metadata: Any, serving: Serving) -> None:
    """Return if the connector can do what is configured.

    Args:
        config: LMCache's configuration, with all overrides applied.
        metadata: LMCache's metadata of this rank.
        serving: What vLLM says of its KV cache.

    Raises:
        ValueError: The connector cannot do it; the message lists all reasons, each with what to change.
    """
    reasons = [*_of_config(config, serving), *_of_model(metadata, serving)]
    if reasons:
        raise ValueError(f"lmcache-cpu-connector cannot serve this: {'; '.join(reasons)}")


def _of_config(config: Any, serving: Serving) -> Iterator[str]:
    chunk, block = config.chunk_size, serving.block_tokens
    if chunk % block:
        yield (
            f"LMCache's chunk_size {chunk} is no multiple of vLLM's block size {block} "
            f"(set chunk_size to a multiple of {block}, or vLLM's --block-size to a divisor of {chunk})"
        )
    # Blending and prefill-decode disaggregation switch this on by themselves (LMCache's `_validate_config`).
    if getattr(config, "save_unfull_chunk", False):
        yield "save_unfull_chunk stores chunks that end inside a block (set it to false)"
    for name in ("use_layerwise", "enable_blending", "use_gpu_connector_v3"):
        if getattr(config, name, False):
            yield f"{name} has no implementation for CPUs (set it to false)"
    serde = getattr(config, "remote_serde", None)
    if serde not in (None, "naive"):
        yield f"remote_serde {serde!r} interprets what is inside a block (set it to 'naive')"


def _of_model(metadata: Any, serving: Serving) -> Iterator[str]:
    if getattr(metadata, "kv_layer_groups_manager", None) is not None:
        yield "this LMCache sizes chunks by its own reading of the cache (before 0.4.7: take a newer one)"
    if metadata.use_mla or metadata.kv_shape[1] != 2:
        yield "models with multi-head latent attention have another cache"
    if len(serving.kinds) > 1:
        yield f"the model has {len(serving.kinds)} KV cache groups, LMCache's in-process connector knows one"
    strange = sorted(set(serving.kinds) - {"FullAttentionSpec"})
    if strange:
        yield f"the model has a cache of another kind than full attention ({', '.join(strange)})"
    if serving.context_parallel > 1:
        yield "decode context parallelism deals a sequence's tokens to several ranks"
