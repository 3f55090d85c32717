"""The command line and environment of one vLLM server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import floors
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.names import server_name
from pytest_kvcache.serving.places import LOOPBACK, Place


def vllm_server(
    place: Place,
    *,
    index: int,
    profile: Profile,
    port: int,
    connector: Mapping[str, object] | None,
    gpus: Sequence[str],
    env: Mapping[str, str],
    secret_env: Mapping[str, str],
    files: Mapping[Path, str],
    folders: tuple[Path, ...] = (),
) -> Component:
    """Return the component of one vLLM server.

    Args:
        place: Where it runs, with the model's name there; requests use the profile's name of the model.
        index: Number of the server in the pair, from 0.
        profile: Model, dtype, sizes and more arguments.
        port: Port to listen on.
        connector: The `--kv-transfer-config` JSON, None for vLLM alone.
        gpus: GPUs of this server, as `CUDA_VISIBLE_DEVICES` names them; without any it serves on the CPU.
        env: More environment variables.
        secret_env: Credentials that an in-process LMCache needs.
        files: Files to write before the start (LMCache's YAML).
        folders: Folders to make before the start (for LMCache's counters and sockets).
    """
    # Options that an older vLLM lacks are left out.
    versions = place.tools.versions
    argv = [
        *place.tools.vllm_launch(place.model),
        "--served-model-name", profile.served_name,
        "--host", place.host,
        "--port", str(port),
        "--dtype", profile.dtype,
    ]  # fmt: skip
    if profile.max_model_len is not None:
        argv += ["--max-model-len", str(profile.max_model_len)]
    if profile.device_blocks is not None:
        argv += ["--num-gpu-blocks-override", str(profile.device_blocks)]
    argv += [*profile.tensor_parallel_args, *profile.vllm_args]
    argv += [
        # A row of the results needs cached tokens, the server's own times, and the server's name. The router adds no
        # header that names the server, so each server gives its name as the role of the first streamed chunk.
        "--enable-prompt-tokens-details",
        *(["--enable-per-request-metrics"] if floors.has(floors.PER_REQUEST_METRICS, versions) else []),
        "--response-role", f"assistant@{server_name(index)}",
        # An access log line for each request would be I/O inside the measured time.
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
            # On the CPU the variable is set too, to nothing: LMCache would otherwise take a GPU that it finds.
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            # CUDA counts the fastest GPU first unless told otherwise; nvidia-smi, job managers and NVML, by which the
            # GPUs of a run are sampled, count in the order of the PCI bus.
            **({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if gpus else {}),
            # Internal sockets listen on these addresses; the default is the first outward address.
            "VLLM_HOST_IP": LOOPBACK,
            "VLLM_LOOPBACK_IP": LOOPBACK,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # The probes empty the prefix cache (/reset_prefix_cache), an endpoint of the developer mode.
            **({"VLLM_SERVER_DEV_MODE": "1"} if profile.rules.probes else {}),
            **env,
        },
        secret_env=secret_env,
        files=files,
        folders=folders,
        ready_url=f"{place.url(port)}/health",
        place=place.name,
    )
