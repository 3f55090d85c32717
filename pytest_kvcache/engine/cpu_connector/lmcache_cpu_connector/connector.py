"""The connector, which copies whole blocks, as bytes, between vLLM's paged CPU tensors and LMCache's chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface

from .layout import Layout, detect
from .limits import Serving, refuse

#: Integer types by the bytes of an element: every operation knows them, as it does not fp8, and copies the bits.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class VLLMPagedMemCPUConnector(GPUConnectorInterface):  # type: ignore[misc]
    """Copies chunks that are whole blocks.

    In a chunk's memory the layers follow each other, each with its blocks as vLLM's tensor holds them.

    Args:
        config: LMCache's configuration, with all overrides applied.
        metadata: LMCache's metadata of this rank.
        serving: What vLLM says of its KV cache.

    Raises:
        ValueError: The connector cannot do what is configured.
    """

    def __init__(self, config: Any, metadata: Any, serving: Serving) -> None:
        refuse(config, metadata, serving)
        self.layers, _, _, self.heads, self.head_size = metadata.kv_shape
        self.serving = serving
        self.kvcaches: Sequence[torch.Tensor] | None = None

    def get_shape(self, num_tokens: int) -> torch.Size:
        """Return the shape that LMCache gives the memory of a chunk of `num_tokens`."""
        return torch.Size([2, self.layers, num_tokens, self.heads * self.head_size])

    def initialize_kvcaches_ptr(self, **kwargs: Any) -> None:
        """Take vLLM's tensors as they are; LMCache's own method would reorder them for a CUDA kernel."""
        if "kvcaches" in kwargs:
            self.kvcaches = kwargs["kvcaches"]

    def from_gpu(self, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
        """Copy the blocks of tokens `start` to `end` into a chunk's memory.

        Args:
            memory_obj: LMCache's memory of the chunk.
            start: Index of the first token in the sequence.
            end: Index behind the last token.
            **kwargs: `kvcaches`, vLLM's tensor of each layer, and `slot_mapping`, the slot of each token of the
                sequence.

        Raises:
            ValueError: The tokens are not whole blocks, or the memory has another size.
        """
        caches, layout = self._caches(kwargs)
        ids = self._block_ids(start, end, kwargs)
        chunk = self._chunk(memory_obj, caches[0], layout, len(ids))
        with torch.inference_mode():
            for blocks, cache in zip(chunk, caches, strict=True):
                torch.index_select(cache, layout.axis, ids, out=blocks)

    def to_gpu(self, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
        """Copy a chunk's memory into the blocks of tokens `start` to `end`, except blocks that vLLM has.

        Args:
            memory_obj: LMCache's memory of the chunk.
            start: Index of the first token in the sequence.
            end: Index behind the last token.
            **kwargs: As in `from_gpu`, and `vllm_cached_tokens`, how many of the sequence's tokens vLLM has already. A
                block of which it has a part is written whole: it is not full, so that no other request shares it.

        Raises:
            ValueError: The tokens are not whole blocks, or the memory has another size.
        """
        caches, layout = self._caches(kwargs)
        ids = self._block_ids(start, end, kwargs)
        chunk = self._chunk(memory_obj, caches[0], layout, len(ids))
        cached = kwargs.get("vllm_cached_tokens", 0)
        skip = min(len(ids), max(0, cached - start) // self.serving.block_tokens)
        if skip == len(ids):
            return
        with torch.inference_mode():
            for blocks, cache in zip(chunk, caches, strict=True):
                cache.index_copy_(layout.axis, ids[skip:], blocks.narrow(layout.axis, skip, len(ids) - skip))

    def batched_from_gpu(self, memory_objs: Sequence[Any], starts: list[int], ends: list[int], **kwargs: Any) -> None:
        """Do `from_gpu` for several chunks of one sequence."""
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(memory_obj, start, end, **kwargs)

    def batched_to_gpu(
        self,
        memory_objs: Sequence[Any] | None = None,
        starts: list[int] | None = None,
        ends: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Do `to_gpu` for several chunks of one sequence."""
        for memory_obj, start, end in zip(memory_objs or (), starts or (), ends or (), strict=True):
            self.to_gpu(memory_obj, start, end, **kwargs)

    def _caches(self, kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], Layout]:
        self.initialize_kvcaches_ptr(**kwargs)
        if self.kvcaches is None:
            raise ValueError("vLLM has registered no KV caches")
        layout = detect(
            self.kvcaches,
            layers=self.layers,
            block_tokens=self.serving.block_tokens,
            heads=self.heads,
            head_size=self.head_size,
            blocks=self.serving.blocks,
        )
        return [cache.view(_BITS[cache.element_size()]) for cache in self.kvcaches], layout

    def _block_ids(self, start: int, end: int, kwargs: dict[str, Any]) -> torch.Tensor:
        """Return the ids of the blocks of tokens `start` to `end`, whose slots must fill these blocks in order."""
        size = self.serving.block_tokens
        slots = kwargs["slot_mapping"][start:end].to(torch.long)
        if start % size or end % size or len(slots) != end - start:
            raise ValueError(
                f"tokens {start} to {end} are no whole blocks of {size} tokens, or beyond the "
                f"{len(kwargs['slot_mapping'])} that have a slot"
            )
        rows = slots.view(-1, size)
        ids = torch.div(rows[:, 0], size, rounding_mode="floor")
        if not torch.equal(rows, ids[:, None] * size + torch.arange(size)) or bool((ids < 0).any()):
            raise ValueError(f"the slots of tokens {start} to {end} are no whole blocks of {size} in order")
        return ids

    def _chunk(self, memory_obj: Any, cache: torch.Tensor, layout: Layout, blocks: int) -> torch.Tensor:
        """Return a chunk's memory as a tensor for each layer, of `blocks` blocks in the shape of vLLM's tensor."""
        tensor = memory_obj.tensor
        if tensor is None:
            raise ValueError("the chunk's memory has been given back")
        wanted = self.layers * blocks * layout.block_bytes
        have = tensor.numel() * tensor.element_size()
        if have != wanted:
            raise ValueError(f"LMCache's memory has {have} bytes for {blocks} blocks that are {wanted}")
        shape = list(cache.shape)
        shape[layout.axis] = blocks
        return tensor.view(-1).view(cache.dtype).view(self.layers, *shape)
