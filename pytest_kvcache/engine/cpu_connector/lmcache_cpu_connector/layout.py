"""Find the blocks in the tensors that vLLM registers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """How the layers' KV caches are cut into blocks.

    Args:
        axis: Dimension of a layer's tensor that counts blocks.
        blocks: Number of blocks.
        block_bytes: Bytes of a block in one layer, keys and values.
    """

    axis: int
    blocks: int
    block_bytes: int


def detect(
    caches: Sequence[Any], *, layers: int, block_tokens: int, heads: int, head_size: int, blocks: int | None = None
) -> Layout:
    """Return the layout of vLLM's KV caches.

    Known layouts are `[blocks, heads, block, 2 * head_size]` (CPU attention of vLLM 0.32), `[2, blocks, heads, block,
    head_size]` (from about 0.11) and `[2, blocks, heads * block * head_size]` (before). Heads and tokens may be the
    other way round: only where one block ends matters.

    Args:
        caches: A tensor for each layer.
        layers: How many there must be.
        block_tokens: Tokens of a block.
        heads: KV heads of this rank.
        head_size: Elements of a head.
        blocks: Blocks that vLLM says it has, None where it does not say.

    Raises:
        ValueError: The layout is not known, or the layers differ.
    """
    if len(caches) != layers:
        raise ValueError(f"vLLM registered {len(caches)} KV caches, LMCache expects {layers} layers")
    kinds = {(tuple(c.shape), str(c.dtype), str(c.device)) for c in caches}
    if len(kinds) != 1:
        raise ValueError(f"layers have different KV caches: {sorted(map(str, kinds))}")
    first = caches[0]
    shape = tuple(first.shape)
    if first.device.type != "cpu":
        raise ValueError(f"the KV cache is on {first.device}, not on the CPU")
    axis = _axis(shape, block_tokens, heads, head_size)
    if axis is None or (blocks is not None and shape[axis] != blocks):
        said = "" if blocks is None else f", {blocks} blocks"
        raise ValueError(
            f"unknown layout of the KV cache: shape {shape} with blocks of {block_tokens} tokens, "
            f"{heads} KV heads of {head_size}{said}"
        )
    return Layout(axis, shape[axis], first.element_size() * math.prod(shape) // shape[axis])


def _axis(shape: tuple[int, ...], tokens: int, heads: int, head_size: int) -> int | None:
    interiors = ((heads, tokens), (tokens, heads))
    if len(shape) == 4 and shape[1:3] in interiors and shape[3] == 2 * head_size:
        return 0
    if len(shape) == 5 and shape[0] == 2 and shape[2:4] in interiors and shape[4] == head_size:
        return 1
    if len(shape) == 3 and shape[0] == 2 and shape[2] == heads * tokens * head_size:
        return 1
    return None
