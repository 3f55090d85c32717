"""The command line and environment of one vLLM server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import floors
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.names import server_name


def vllm_server(
    launch: tuple[str, ...],
    *,
    index: int,
    profile: Profile,
    port: int,
    connector: Mapping[str, object] | None,
    versions: Mapping[str, str],
    gpus: Sequence[str],
    env: Mapping[str, str],
    secret_env: Mapping[str, str],
    files: Mapping[Path, str],
    folders: tuple[Path, ...] = (),
) -> Component:
    """Return the component of one vLLM server.

    Args:
        launch: How vLLM's OpenAI server is started with the model; requests use the profile's name of it.
        index: Which of the pair.
        profile: Model, dtype, sizes and more arguments.
        port: To listen on, at 127.0.0.1.
        connector: The `--kv-transfer-config` JSON, None for vLLM alone.
        versions: Of the engine: what an older one lacks and does not need is left out.
        gpus: Those of this server, as `CUDA_VISIBLE_DEVICES` names them; none serves on the CPU.
        env: More environment.
        secret_env: Credentials that an in-process LMCache needs.
        files: To write before the start (LMCache's YAML).
        folders: To make before the start (LMCache's counters and sockets).
    """
    argv = [
        *launch,
        "--served-model-name", profile.served_name,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--dtype", profile.dtype,
    ]  # fmt: skip
    if profile.max_model_len is not None:
        argv += ["--max-model-len", str(profile.max_model_len)]
    if profile.device_blocks is not None:
        argv += ["--num-gpu-blocks-override", str(profile.device_blocks)]
    argv += [*profile.tensor_parallel_args, *profile.vllm_args]
    argv += [
        # What a row of the results needs: cached tokens, the server's own times, and who answered. The router adds
        # no header that names the server, so each one says it in the role of the first streamed chunk.
        "--enable-prompt-tokens-details",
        *(["--enable-per-request-metrics"] if floors.has(floors.PER_REQUEST_METRICS, versions) else []),
        "--response-role", f"assistant@{server_name(index)}",
        # One access log line a request would be I/O inside what is measured.
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if connector is not None:
        argv += ["--kv-transfer-config", json.dumps(connector, separators=(",", ":"))]
    return Component(
        name=server_name(index),
        argv=tuple(argv),
        stage="servers",
        env={
            **profile.env,
            # Without any on the CPU too: LMCache, which finds one, would take it.
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            # CUDA counts the fastest GPU first unless told otherwise; nvidia-smi, job managers and NVML, by which the
            # GPUs of a run are sampled, count in the order of the PCI bus.
            **({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if gpus else {}),
            # Internal sockets follow these; the default is the first outward address.
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_LOOPBACK_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # The probes empty the prefix cache (/reset_prefix_cache), which is one of the endpoints for developers.
            **({"VLLM_SERVER_DEV_MODE": "1"} if profile.rules.probes else {}),
            **env,
        },
        secret_env=secret_env,
        files=files,
        folders=folders,
        ready_url=f"http://127.0.0.1:{port}/health",
    )
