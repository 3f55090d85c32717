"""LMCache in both of its modes: as a server beside each vLLM, or inside vLLM with a YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.engine import floors
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.names import lmcache_name
from pytest_kvcache.serving.offload import Offload
from pytest_kvcache.serving.places import Place
from pytest_kvcache.telemetry import internal_api

#: Beginning of the names of the sockets of LMCache's internal API servers.
SOCKET = "api"


def lmcache_server(
    place: Place,
    *,
    index: int,
    profile: Profile,
    offload: Offload,
    port: int,
    http_port: int,
    gpus: Sequence[str],
    env: Mapping[str, str],
    secret_env: Mapping[str, str],
) -> Component:
    """Return the component of the LMCache server beside the `index`-th vLLM (multi-process mode).

    Args:
        place: Where it runs.
        index: Number of the vLLM server in the pair, from 0.
        profile: Profile with the sizes of L1 and of a chunk.
        offload: The tier's L2 adapter, if any.
        port: Port for vLLM's connector.
        http_port: Port for health, metrics and control.
        gpus: GPUs of its vLLM server, whose memory the LMCache server maps.
        env: More environment variables.
        secret_env: Credentials that the L2 adapter reads.
    """
    # Options that an older LMCache lacks and does not need are left out.
    argv = [
        place.tools.program("lmcache"), "server",
        "--host", place.host,
        "--port", str(port),
        "--http-host", place.host,
        "--http-port", str(http_port),
        "--l1-size-gb", f"{profile.l1_size_gb:g}",
        "--chunk-size", str(profile.chunk_tokens),
        "--eviction-policy", "LRU",
    ]  # fmt: skip
    if floors.has(floors.SUPPORTED_TRANSFER_MODE, place.tools.versions):
        argv += ["--supported-transfer-mode", "auto"]
    if offload.l2_adapter is not None:
        argv += ["--l2-adapter", json.dumps(offload.l2_adapter, separators=(",", ":"))]
    return Component(
        name=lmcache_name(index),
        argv=tuple(argv),
        stage="servers",
        env={
            **profile.env,
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "LMCACHE_TRACK_USAGE": "false",
            "LMCACHE_DISABLE_BANNER": "1",
            **env,
        },
        secret_env=secret_env,
        ready_url=f"{place.url(http_port)}/healthcheck",
        place=place.name,
    )


def mp_connector(host: str, port: int) -> dict[str, Any]:
    """Return vLLM's `--kv-transfer-config` for an LMCache server at an address and port."""
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"lmcache.mp.host": f"tcp://{bracketed(host)}", "lmcache.mp.port": port},
    }


def in_process_connector(name: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return vLLM's `--kv-transfer-config` for LMCache inside vLLM.

    Args:
        name: Name of the server.
        versions: Versions of the engine. LMCache before 0.5.4 names a socket after vLLM's `engine_id`, by default a
            UUID; the socket's path in the folder of a run is then longer than sockets allow (107 bytes).
    """
    own = {} if floors.has(floors.SHORT_SOCKETS, versions) else {"engine_id": name}
    return {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both", **own}


def in_process_env(offload: Offload, config: Path, folder: Path, *, ranks: int) -> dict[str, str]:
    """Return the environment of a vLLM server whose LMCache runs inside it.

    LMCache applies variables `LMCACHE_*` after its YAML file: settings that only serve measuring are variables, and the
    file holds those of the tier alone. `LMCACHE_EXTRA_CONFIG` replaces the file's whole `extra_config`, and so repeats
    its content.

    Args:
        offload: The tier's configuration of this server.
        config: Path of the YAML file.
        folder: Folder of this server alone, for counters and sockets.
        ranks: Number of worker processes of the server.
    """
    extra = {**offload.engine_config.get("extra_config", {}), **offload.engine_extra}
    return {
        "LMCACHE_CONFIG_FILE": str(config),
        **({"LMCACHE_EXTRA_CONFIG": json.dumps(extra)} if offload.engine_extra else {}),
        # LMCache hashes tokens with Python's hash(): without a common seed no server finds what another one stored.
        "PYTHONHASHSEED": "0",
        "LMCACHE_TRACK_USAGE": "false",
        # Without this variable LMCache makes a folder in /tmp that all servers share and nobody removes.
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        **internal_api.environment(folder / SOCKET, ranks),
    }


def in_process_yaml(profile: Profile, offload: Offload) -> str:
    """Return the YAML for LMCACHE_CONFIG_FILE, with keys and order as in the reference article.

    The chunk size is written only where the profile sets it, as the article's file has none.
    """
    size_gb = profile.l1_size_gb
    config: dict[str, Any] = {
        "local_cpu": True,
        "max_local_cpu_size": int(size_gb) if size_gb.is_integer() else size_gb,
    }
    if "chunk_tokens" in profile.model_fields_set:
        config["chunk_size"] = profile.chunk_tokens
    config |= {"save_decode_cache": True, **offload.engine_config}
    return yaml.safe_dump(config, sort_keys=False)
