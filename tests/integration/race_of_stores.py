"""Runs in the engine environment: two servers' worth of LMCache's own classes store the same chunks at the same time.

Reads a JSON list on standard input, one `{"yaml": …, "env": …}` (inside vLLM) or `{"adapter": …}` (beside it) for each
server, and prints how many stores of each failed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from types import SimpleNamespace
from typing import Any

CHUNKS, CHUNK_BYTES, LIMIT_S = 60, 1 << 20, 120.0


def inside_vllm(text: str, env: dict[str, str], start: Barrier) -> int:
    """Store with the connector that LMCache makes of an in-process YAML and environment; return how many failed."""
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.storage_backend.connector import fs_connector

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        config = LMCacheEngineConfig.from_file(file.name)
    os.environ.update(env)
    config.update_config_from_env()
    # What it would read of a model is only what it writes beside a chunk.
    fs_connector.RemoteConnector.__init__ = lambda self, *_: setattr(self, "save_chunk_meta", False)

    async def store() -> int:
        beside = SimpleNamespace(config=config, metadata=None)
        connector = fs_connector.FSConnector(asyncio.get_running_loop(), beside, config, plugin_name="fs")
        failed = 0
        for number in range(CHUNKS):
            key = SimpleNamespace(to_string=lambda number=number: f"m@1@0@{number:x}@bf16", chunk_hash=number)
            start.wait(LIMIT_S)
            try:
                await connector.put(key, SimpleNamespace(byte_array=bytes(CHUNK_BYTES)))
            except OSError:
                failed += 1
        return failed

    return asyncio.run(store())


def beside_vllm(adapter: dict[str, Any], start: Barrier) -> int:
    """Store with the adapter that `lmcache server` makes of its JSON; return how many failed."""
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.distributed.l2_adapters import fs_l2_adapter as fs

    made = fs.FSL2Adapter(fs.FSL2AdapterConfig.from_dict(adapter))
    failed = 0
    for number in range(CHUNKS):
        key = ObjectKey(chunk_hash=number.to_bytes(8, "big"), model_name="m", kv_rank=0)
        start.wait(LIMIT_S)
        task = made.submit_store_task([key], [SimpleNamespace(byte_array=bytes(CHUNK_BYTES))])
        done: dict[int, Any] = {}
        while task not in done:
            done |= made.pop_completed_store_tasks()
        failed += not done[task].is_successful()
    return failed


def server(config: dict[str, Any], start: Barrier, said: Queue[int]) -> None:
    """Be one of the servers."""
    said.put(
        inside_vllm(config["yaml"], config["env"], start) if "yaml" in config else beside_vllm(config["adapter"], start)
    )


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    configs = json.load(sys.stdin)
    barrier, results = context.Barrier(len(configs)), context.Queue()
    servers = [context.Process(target=server, args=(config, barrier, results), daemon=True) for config in configs]
    for each in servers:
        each.start()
    print("RESULT", json.dumps([results.get(timeout=LIMIT_S) for _ in servers]))
    for each in servers:
        each.terminate()
