"""Put the connector into LMCache for as long as vLLM makes a connector, and its identity into LMCache's keys.

The module depends on three things of LMCache (read in 0.4.7 to 0.5.6): `lmcache.v1.gpu_connector.CreateGPUConnector`,
which the vLLM integration looks up at each call; the abstract methods of `GPUConnectorInterface`; and
`ChunkedTokenDatabase._get_init_hash`, from which the hashes of all chunks follow.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import platform
from collections.abc import Iterator
from typing import Any

import torch
from lmcache import __version__ as lmcache_version
from lmcache.logging import init_logger
from lmcache.utils import EngineType
from lmcache.v1 import gpu_connector
from lmcache.v1.token_database import ChunkedTokenDatabase

from .connector import VLLMPagedMemCPUConnector
from .limits import Serving

_logger = init_logger(__name__)
_original_hash = ChunkedTokenDatabase._get_init_hash


def serving(vllm_config: Any, kv_cache_config: Any = None) -> Serving:
    """Return what the connector must know of vLLM.

    Args:
        vllm_config: vLLM's configuration of this process.
        kv_cache_config: How the cache is laid out; vLLM before 0.11.1 does not give it to connectors.
    """
    cache, groups = vllm_config.cache_config, getattr(kv_cache_config, "kv_cache_groups", ())
    parallel = vllm_config.parallel_config
    return Serving(
        block_tokens=cache.block_size,
        blocks=getattr(kv_cache_config, "num_blocks", None),
        kinds=tuple(type(group.kv_cache_spec).__name__ for group in groups),
        context_parallel=getattr(parallel, "decode_context_parallel_size", 1),
        identity=_identity(cache),
    )


@contextlib.contextmanager
def connector_for(vllm_config: Any, kv_cache_config: Any = None) -> Iterator[None]:
    """Have LMCache make its connector for vLLM's CPU tensors while the context lasts.

    LMCache goes on without a connector where it cannot be made; so the error is raised again at the end of the
    context, and vLLM ends with the reason.

    Raises:
        ValueError: This connector cannot do what is configured.
        RuntimeError: LMCache's internals are not as known.
    """
    _check_lmcache()
    known = serving(vllm_config, kv_cache_config)
    refused: list[Exception] = []
    original = gpu_connector.CreateGPUConnector

    def create(config: Any, metadata: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
        if engine != EngineType.VLLM:
            return original(config, metadata, engine, *args, **kwargs)
        try:
            made = VLLMPagedMemCPUConnector(config, metadata, known)
        except Exception as error:
            refused.append(error)
            raise
        _logger.info("lmcache-cpu-connector copies KV of rank %d: %s", metadata.worker_id, known)
        return made

    # This method is not restored: hashes are taken as long as the process lives.
    ChunkedTokenDatabase._get_init_hash = lambda self: mixed(_original_hash(self), known.identity)
    gpu_connector.CreateGPUConnector = create
    try:
        yield
    finally:
        gpu_connector.CreateGPUConnector = original
        if refused:
            raise refused[0]


def mixed(initial: int, identity: str) -> int:
    """Return LMCache's initial hash with an identity mixed in: an int of 63 bits, the same in each process."""
    digest = hashlib.sha256(f"{initial} {identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _identity(cache_config: Any) -> str:
    """Name what decides about the bytes of a block, whose order depends on vLLM's version and the instruction set."""
    from vllm.version import __version__ as vllm_version  # noqa: PLC0415 - not all of vLLM for the tests' sake

    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    parts = (
        f"vllm {vllm_version}",
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        "AMX" if amx else "no AMX",
        f"block {cache_config.block_size}",
        f"kv {cache_config.cache_dtype}",
    )
    return ", ".join(parts)


def _check_lmcache() -> None:
    create = getattr(gpu_connector, "CreateGPUConnector", None)
    missing = set(VLLMPagedMemCPUConnector.__abstractmethods__)
    if create is None or missing or list(inspect.signature(create).parameters)[:3] != ["config", "metadata", "engine"]:
        what = (
            f"methods unknown to this connector ({', '.join(sorted(missing))})" if missing else "no CreateGPUConnector"
        )
        raise RuntimeError(f"lmcache-cpu-connector is for LMCache 0.4.7 to 0.5.6; LMCache {lmcache_version} has {what}")
