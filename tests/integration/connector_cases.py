"""Runs in the engine environment: the connector for CPU tensors on LMCache's real memory objects and engine.

Prints a JSON object: name of a case → "" where it held, else why not. Each case builds KV caches of random bytes.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lmcache.utils import EngineType
from lmcache.v1 import gpu_connector
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_allocators.host_memory_allocator import HostMemoryAllocator
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.token_database import ChunkedTokenDatabase
from lmcache_cpu_connector import plugin
from lmcache_cpu_connector.connector import VLLMPagedMemCPUConnector
from lmcache_cpu_connector.limits import Serving

LAYERS, HEADS, HEAD, BLOCKS = 3, 2, 16, 40
LAYOUTS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "0.32": lambda block: (BLOCKS, HEADS, block, 2 * HEAD),
    "0.11": lambda block: (2, BLOCKS, HEADS, block, HEAD),
    "0.10": lambda block: (2, BLOCKS, HEADS * block * HEAD),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
Case = Callable[[], None]


class Fixture:
    """A connector, two servers' KV caches, and LMCache's memory."""

    def __init__(self, layout: str, block: int, dtype: str = "float32", chunk: int = 256) -> None:
        self.block, self.chunk, self.dtype = block, chunk, DTYPES[dtype]
        self.axis = 0 if layout == "0.32" else 1
        self.shape = LAYOUTS[layout](block)
        self.stored = torch.uint8 if dtype == "fp8" else self.dtype
        self.metadata = metadata(chunk, self.stored)
        self.connector = VLLMPagedMemCPUConnector(config(chunk), self.metadata, Serving(block, BLOCKS))
        self.ours, self.theirs = self.caches(), self.caches()
        self.memory = HostMemoryAllocator(64 << 20)

    def caches(self) -> list[torch.Tensor]:
        """Return KV caches of random bytes, NaNs and all."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return [
            torch.randint(0, 256, (size,), dtype=torch.uint8).view(self.dtype).view(self.shape) for _ in range(LAYERS)
        ]

    def chunks(self, tokens: int) -> tuple[list[Any], list[int], list[int]]:
        """Return LMCache's memory, starts and ends of the chunks of a prompt."""
        starts = list(range(0, tokens, self.chunk))
        ends = [min(start + self.chunk, tokens) for start in starts]
        found = []
        for start, end in zip(starts, ends, strict=True):
            (shape,) = self.metadata.get_shapes(end - start)
            found.append(self.memory.allocate(shape, self.stored, fmt=MemoryFormat.KV_2LTD))
        return found, starts, ends

    def slots(self, ids: list[int], tokens: int) -> torch.Tensor:
        """Return the slots of a prompt's tokens in blocks `ids`, as LMCache's adapter makes them."""
        return (torch.tensor(ids)[:, None] * self.block + torch.arange(self.block)).flatten()[:tokens]

    def blocks(self, caches: list[torch.Tensor], ids: Iterable[int]) -> bytes:
        """Return the bytes of blocks in all layers."""
        return b"".join(
            cache.select(self.axis, i).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for cache in caches
            for i in ids
        )

    def others(self, ids: list[int]) -> list[int]:
        """Return all blocks but `ids`."""
        return [i for i in range(BLOCKS) if i not in ids]


def config(chunk: int = 256, **more: Any) -> Any:
    """Return a configuration of LMCache."""
    return LMCacheEngineConfig.from_defaults(chunk_size=chunk, **more)


def metadata(chunk: int = 256, dtype: torch.dtype = torch.float32) -> Any:
    """Return LMCache's metadata of one rank."""
    return LMCacheMetadata(
        model_name="m",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=dtype,
        kv_shape=(LAYERS, 2, chunk, HEADS, HEAD),
        role="worker",
        chunk_size=chunk,
    )


def shuffled(number: int) -> list[int]:
    """Return block ids in no order, the first and the last block among them."""
    ids = (torch.randperm(BLOCKS - 2) + 1)[: number - 2].tolist()
    return [BLOCKS - 1, *ids, 0]


def round_trip(layout: str, block: int, dtype: str) -> None:
    """Every block comes back to the byte, several chunks a call, one at the prompt's end; no other is touched."""
    at = Fixture(layout, block, dtype)
    tokens = 4 * at.chunk + max(block, 128)
    ids, other = shuffled(tokens // block)[: tokens // block], shuffled(tokens // block)
    memory, starts, ends = at.chunks(tokens)
    untouched, ours = at.blocks(at.theirs, at.others(other)), at.blocks(at.ours, range(BLOCKS))
    at.connector.batched_from_gpu(memory, starts, ends, kvcaches=at.ours, slot_mapping=at.slots(ids, tokens))
    at.connector.batched_to_gpu(memory, starts, ends, kvcaches=at.theirs, slot_mapping=at.slots(other, tokens))
    assert at.blocks(at.theirs, other) == at.blocks(at.ours, ids), "the blocks that came back are others"
    assert at.blocks(at.theirs, at.others(other)) == untouched, "a block that is not the prompt's was written"
    assert at.blocks(at.ours, range(BLOCKS)) == ours, "storing wrote to the cache"


def cached(layout: str, block: int) -> None:
    """Blocks that vLLM has are not written, for each number of tokens that it may have; the rest is."""
    at = Fixture(layout, block)
    tokens = 3 * at.chunk
    ids = shuffled(tokens // block)
    memory, starts, ends = at.chunks(tokens)
    at.connector.batched_from_gpu(memory, starts, ends, kvcaches=at.ours, slot_mapping=at.slots(ids, tokens))
    for have in (0, block, at.chunk - block, at.chunk, at.chunk + block, at.chunk + block + 1, tokens - 1, tokens):
        theirs = at.caches()
        full = have // block
        before, rest = at.blocks(theirs, ids[:full]), at.blocks(theirs, at.others(ids))
        # As LMCache's adapter does: chunks that vLLM has whole are not asked for.
        first = have // at.chunk
        at.connector.batched_to_gpu(
            memory[first:],
            starts[first:],
            ends[first:],
            kvcaches=theirs,
            slot_mapping=at.slots(ids, tokens),
            vllm_cached_tokens=have,
        )
        assert at.blocks(theirs, ids[:full]) == before, f"a block that vLLM has was written ({have} tokens)"
        assert at.blocks(theirs, ids[full:]) == at.blocks(at.ours, ids[full:]), f"a block is missing ({have} tokens)"
        assert at.blocks(theirs, at.others(ids)) == rest, f"another block was written ({have} tokens)"


def refused_chunks() -> None:
    """A chunk that is no whole blocks, slots in no order or missing, memory of another size: nothing is written."""
    at = Fixture("0.32", 128)
    ids = shuffled(6)
    slots = at.slots(ids, 768)
    swapped = slots.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    (full,), _, _ = at.chunks(256)
    (short,), _, _ = at.chunks(200)
    for memory, start, end, mapping in (
        (short, 0, 200, slots),
        (short, 512, 712, slots),
        (full, 64, 320, slots),
        (full, 0, 256, swapped),
        (full, 0, 256, slots - 128 * BLOCKS),
        (full, 640, 896, slots),
        (short, 0, 256, slots),
    ):
        before = at.blocks(at.theirs, range(BLOCKS))
        for move in (at.connector.to_gpu, at.connector.from_gpu):
            with raises(ValueError):
                move(memory, start, end, kvcaches=at.theirs, slot_mapping=mapping)
        assert at.blocks(at.theirs, range(BLOCKS)) == before


def refused_layouts() -> None:
    """Shapes that are not known, layers that differ and a wrong number of layers or blocks are refused by name."""
    at = Fixture("0.32", 128)
    (memory,), _, _ = at.chunks(256)
    strange = [
        [c.view(HEADS, BLOCKS, 128, 2 * HEAD) for c in at.ours],
        [c.view(BLOCKS, 2, HEADS, 128, HEAD) for c in at.ours],
        [c.view(BLOCKS, -1) for c in at.ours],
        [c.view(BLOCKS * 2, HEADS, 64, 2 * HEAD) for c in at.ours],
        [c[1:] for c in at.ours],
        [*at.ours[1:], at.ours[0].to(torch.bfloat16)],
        at.ours[1:],
    ]
    for caches in strange:
        with raises(ValueError):
            at.connector.to_gpu(memory, 0, 256, kvcaches=caches, slot_mapping=at.slots([1, 2], 256))


def refused_configurations() -> None:
    """What the connector cannot do ends vLLM with a reason, although LMCache would go on without offloading."""
    fine = config(), metadata(), Serving(128, 40, ("FullAttentionSpec",))
    VLLMPagedMemCPUConnector(*fine)
    for words, changed in (
        ("chunk_size 192", (config(192), *fine[1:])),
        ("block size 512", (*fine[:2], Serving(512))),
        ("save_unfull_chunk", (config(save_unfull_chunk=True), *fine[1:])),
        ("use_layerwise", (config(use_layerwise=True), *fine[1:])),
        ("use_gpu_connector_v3", (config(use_gpu_connector_v3=True), *fine[1:])),
        ("remote_serde", (config(remote_serde="cachegen"), *fine[1:])),
        ("0.4.7", (fine[0], replace(fine[1], kv_layer_groups_manager=object()), fine[2])),
        ("latent attention", (fine[0], replace(fine[1], use_mla=True), fine[2])),
        ("2 KV cache groups", (*fine[:2], Serving(128, 40, ("FullAttentionSpec",) * 2))),
        ("SlidingWindowSpec", (*fine[:2], Serving(128, 40, ("SlidingWindowSpec",)))),
        ("context parallelism", (*fine[:2], Serving(128, context_parallel=2))),
    ):
        with raises(ValueError, words):
            VLLMPagedMemCPUConnector(*changed)


def vllm_config(connector: str = "LMCacheConnectorV1", block: int = 128) -> Any:
    """Return what the connector reads of vLLM's configuration."""
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_connector=connector),
        cache_config=SimpleNamespace(block_size=block, cache_dtype="auto"),
        parallel_config=SimpleNamespace(),
    )


def factory(chunk: int = 256) -> Any:
    """Return a connector factory whose connectors swallow errors, as LMCache's manager does."""
    lmcache = config(chunk)

    class Factory:
        @classmethod
        def create_connector(cls, config: Any, role: str, kv_cache_config: Any = None) -> Any:  # noqa: ARG003 - vLLM's
            try:
                return gpu_connector.CreateGPUConnector(lmcache, metadata(chunk), EngineType.VLLM)
            except (ValueError, RuntimeError):
                return "degraded"

    plugin.hook(Factory)
    plugin.hook(Factory)
    return Factory


def hooked() -> None:
    """The factory makes the connector for LMCache inside vLLM and for nothing else; a refusal reaches vLLM."""
    original = gpu_connector.CreateGPUConnector
    made = factory().create_connector(config=vllm_config(), role="worker", kv_cache_config=None)
    assert isinstance(made, VLLMPagedMemCPUConnector)
    assert factory().create_connector(vllm_config("LMCacheMPConnector"), "worker") == "degraded"
    with raises(ValueError, "chunk_size 192"):
        factory(192).create_connector(vllm_config(), "worker")
    assert gpu_connector.CreateGPUConnector is original


def identity() -> None:
    """Servers of another block size or kind of processor have other keys; equal servers have the same."""
    keys = []
    for block in (128, 128, 64):
        factory().create_connector(vllm_config(block=block), "scheduler")
        database = ChunkedTokenDatabase(config(), metadata())
        keys.append([key for _, _, key in database.process_tokens(list(range(512)), make_key=False)])
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def engines(block: int) -> None:
    """Two of LMCache's own engines share a folder: one stores a prompt, the other loads it to the byte."""
    at = Fixture("0.32", block)
    tokens = torch.randint(0, 30000, (1111,)).tolist()
    whole = len(tokens) // at.chunk * at.chunk
    ids, other = shuffled(-(-len(tokens) // block)), shuffled(-(-len(tokens) // block))
    with tempfile.TemporaryDirectory() as folder:
        said = {"remote_storage_plugin.fs.base_path": folder}
        shared = config(max_local_cpu_size=0.05, remote_storage_plugins=["fs"], extra_config=said)
        built = []
        for name in ("one", "two"):
            connector = VLLMPagedMemCPUConnector(shared, at.metadata, Serving(block, BLOCKS))
            engine = LMCacheEngineBuilder.get_or_create(
                f"{name}-{block}", shared, at.metadata, connector, lambda *_: None, lambda *_: None
            )
            engine.post_init()
            built.append(engine)
        built[0].store(tokens, kvcaches=at.ours, slot_mapping=at.slots(ids, len(tokens)), offset=0, req_id="r")
        # LMCache writes `….tmp` and renames it: only then is the chunk there for another server.
        wait(lambda: len([p for p in Path(folder).rglob("*.data") if p.is_file()]) >= whole // at.chunk)
        rest = at.blocks(at.theirs, at.others(other[: whole // block]))
        found = built[1].retrieve(tokens, kvcaches=at.theirs, slot_mapping=at.slots(other, len(tokens)), req_id="r")
        for name in ("one", "two"):
            LMCacheEngineBuilder.destroy(f"{name}-{block}")
    assert int(found.sum()) == whole, f"{int(found.sum())} of {whole} tokens came back"
    assert at.blocks(at.theirs, other[: whole // block]) == at.blocks(at.ours, ids[: whole // block])
    assert at.blocks(at.theirs, at.others(other[: whole // block])) == rest


def wait(until: Callable[[], bool]) -> None:
    """Wait for LMCache's writers, at most 60 s."""
    import time

    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, "LMCache did not write the chunks"
        time.sleep(0.05)


class raises:  # noqa: N801 - reads as pytest's, which is not in the engine environment
    """Assert that the block raises `kind`, and that its message has `words`."""

    def __init__(self, kind: type[Exception], words: str = "") -> None:
        self.kind, self.words = kind, words

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        assert kind is not None, f"nothing was raised ({self.words})"
        assert not issubclass(kind, self.kind) or self.words in str(error), str(error)
        return issubclass(kind, self.kind)


def cases() -> Iterator[tuple[str, Case]]:
    """Yield every case with its name."""
    for layout, block, dtype in itertools.product(LAYOUTS, (128, 32), DTYPES):
        yield f"round trip {layout} {block} {dtype}", partial(round_trip, layout, block, dtype)
    for layout, block in itertools.product(LAYOUTS, (128, 32)):
        yield f"vLLM has a part {layout} {block}", partial(cached, layout, block)
    for block in (128, 64):
        yield f"LMCache's engines {block}", partial(engines, block)
    for case in (refused_chunks, refused_layouts, refused_configurations, hooked, identity):
        yield case.__name__.replace("_", " "), case


def main() -> None:
    """Run every case."""
    result = {}
    for name, case in cases():
        torch.manual_seed(0)
        try:
            case()
            result[name] = ""
        except Exception:
            result[name] = traceback.format_exc()
    sys.stdout.write("RESULT " + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
