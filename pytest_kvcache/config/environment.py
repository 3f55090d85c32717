"""What of an environment reaches the processes of a run, and what a profile may set: one list, with reasons.

Facts of the machine and of its user pass: where things are, how to get at the network, who one is. Whatever changes
what is measured does not: it belongs in the profile's `env`, where a baseline knows of it. And what would break a run
is refused there, too. Names are those of vLLM 0.32 (`vllm/envs.py`), LMCache 0.5.6 and what they are built on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Names:
    """Variables with one reason.

    Args:
        names: Each a name, or the beginning of names with a `*`.
        reason: Why they are withheld, or refused in a profile.
        but: These pass all the same.
    """

    names: tuple[str, ...]
    reason: str
    but: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether `name` is one of these."""
        return _among(name, self.names) and not _among(name, self.but)


#: Credentials that engines read: they pass, to containers too, and their values are nowhere in files or outputs.
CREDENTIALS = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN",
    "LMCACHE_RESP_USERNAME", "LMCACHE_RESP_PASSWORD", "LMCACHE_AEROSPIKE_USERNAME", "LMCACHE_AEROSPIKE_PASSWORD",
)  # fmt: skip

#: Of the caller's environment, what processes of a run do not get.
WITHHELD = (
    Names(
        ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES"),
        "an allotment: each server is given its own part of it",
    ),
    Names(
        ("LMCACHE_*",),
        "LMCache applies them after its file, over the profile's keys; set them in the profile's env",
        but=CREDENTIALS,
    ),
    Names(
        ("VLLM_*",),
        "they move ports and logs, ask for keys, or change what is measured; set them in the profile's env",
        but=(
            "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "VLLM_ASSETS_CACHE", "VLLM_TUNED_CONFIG_FOLDER",
            "VLLM_NCCL_SO_PATH", "VLLM_NCCL_INCLUDE_PATH", "VLLM_CUDART_SO_PATH", "VLLM_USE_MODELSCOPE",
            "VLLM_ENABLE_CUDA_COMPATIBILITY", "VLLM_CUDA_COMPATIBILITY_PATH",
        ),
    ),
    Names(
        ("PROMETHEUS_*", "prometheus_*"),
        "counters of several servers would be added up in one folder",
    ),
    Names(
        ("PYTHON*", "VIRTUAL_ENV", "CONDA_*"),
        "of the environment that pytest runs in; the engine has another one, and its logs are read as UTF-8",
        but=("PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX"),
    ),
    Names(("PYTEST_*", "COV_*", "COVERAGE_*"), "pytest's own; nothing of a run is measured for coverage"),
    Names(
        ("AWS_*",),
        "credentials of storage: a tier hands them on to the processes that need them",
        but=("AWS_CA_BUNDLE",),
    ),
    Names(("RCLONE_*",), "they change the S3 server that a run starts"),
    Names(("KVCACHE_LOAD_KEY",), "the key of load nodes: the load process alone gets it"),
    Names(
        (
            "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ROLE_*",
            "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_*", "PET_*", "SLURM_*", "PMI_*", "PMIX_*", "OMPI_*",
            "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_*", "RAY_*",
        ),
        "left by torchrun, MPI, Slurm or Ray: a server would take itself for a rank of another job",
    ),
    Names(
        ("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "NUMEXPR_*", "TORCH_NUM_THREADS"),
        "threads change what is measured; set them in the profile's env",
    ),
    Names(
        (
            "TORCHDYNAMO_*", "TORCHINDUCTOR_*", "TORCH_COMPILE*", "TORCH_LOGS*", "TORCH_TRACE", "TORCH_SHOW_CPP*",
            "TORCH_BLAS_*", "TORCH_ALLOW_TF32*", "PYTORCH_*", "TRITON_*", "FLASHINFER_*", "CUDA_LAUNCH_BLOCKING",
            "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS*", "CUDNN_*", "NVIDIA_TF32_OVERRIDE",
        ),
        "they change kernels, memory or answers; set them in the profile's env",
        but=(
            "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_PTXAS_PATH",
            "FLASHINFER_WORKSPACE_BASE", "FLASHINFER_CUDA_ARCH_LIST", "FLASHINFER_CUBIN_DIR",
        ),
    ),
    Names(("OTEL_*",), "traces would be sent beside what is measured; set them in the profile's env"),
    Names(("WEB_CONCURRENCY", "UVICORN_*"), "a server is one HTTP process: counters of several do not add up"),
    Names(("FORCE_COLOR", "CLICOLOR_FORCE"), "logs are read, and colours are none of their words"),
)  # fmt: skip

#: What a profile's `env` cannot set.
REFUSED = (
    Names(
        (
            "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
            "NVIDIA_VISIBLE_DEVICES",
        ),
        "set gpus_per_server; CUDA_VISIBLE_DEVICES of the caller says which GPUs",
    ),
    Names(("LMCACHE_CONFIG_FILE",), "each server has a file of its own, made from profile and tier"),
    Names(("LMCACHE_CHUNK_SIZE",), "set chunk_tokens"),
    Names(("LMCACHE_MAX_LOCAL_CPU_SIZE",), "set l1_size_gb"),
    Names(
        (
            "LMCACHE_LOCAL_CPU", "LMCACHE_LOCAL_DISK", "LMCACHE_MAX_LOCAL_DISK_SIZE", "LMCACHE_REMOTE_URL",
            "LMCACHE_REMOTE_STORAGE_PLUGINS", "LMCACHE_EXTRA_CONFIG", "LMCACHE_GDS_PATH",
        ),
        "the tier says where KV goes; a storage of your own is a tier of kind lmcache-l2",
    ),
    Names(
        ("LMCACHE_INTERNAL_API_SERVER_*", "LMCACHE_RUN_SCRIPT_API_ENABLED", "LMCACHE_SCRIPT_ALLOWED_IMPORTS"),
        "LMCache's counters are read through it",
    ),
    Names(
        ("LMCACHE_TRACK_USAGE", "LMCACHE_DISABLE_BANNER", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"),
        "a run reports to nobody",
    ),
    Names(("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"), "each server has a folder of its own"),
    Names(("PYTHONHASHSEED",), "all servers have one seed, or none finds what another one stored"),
    Names(("PYTHONPATH", "PYTHONHOME"), "the engine is what --kv-engine names; install what is to be imported there"),
    Names(("TMPDIR",), "each run has a folder of its own, which is removed"),
    Names(
        (
            "VLLM_PORT", "VLLM_HOST_IP", "VLLM_LOOPBACK_IP", "VLLM_RPC_BASE_PATH", "VLLM_DP_*", "MASTER_ADDR",
            "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK",
        ),
        "all servers would get the same ones; a run finds its ports and addresses itself",
    ),
    Names(("VLLM_SERVER_DEV_MODE",), "set rules.probes, which needs it"),
    Names(("VLLM_API_KEY",), "the load is sent without a key"),
    Names(("VLLM_PLUGINS",), "it would leave out the plugin that connects LMCache to the CPU build"),
    Names(("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH"), "the first cause of a failure is read from the log"),
    Names(("VLLM_USE_V1",), "counters and connectors are those of vLLM's V1 engine"),
    Names(("VLLM_USE_RUST_FRONTEND", "VLLM_RUST_FRONTEND_PATH"), "it has other arguments and other counters"),
    Names(
        ("AWS_*", "RCLONE_*", "*_TOKEN", "*_PASSWORD", "*_SECRET", "*_SECRET_*", "*_API_KEY", "*_ACCESS_KEY*"),
        "no secret belongs in a file: set it in the environment of pytest (docs/runners.md)",
    ),
)  # fmt: skip

#: Of what passes, what a reader of a run may want to know of; values are not kept.
_WORTH_NAMING = (
    "HF_*", "HUGGING*", "TRANSFORMERS_*", "*_proxy", "*_PROXY", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "NCCL_*", "UCX_*", "GLOO_*", "NVSHMEM_*", "CUDA_*", "NVIDIA_*", "ROCR_*", "LD_*", "MALLOC_*", "VLLM_*", "LMCACHE_*",
    "MOONCAKE_*", "MC_*", "TORCH*", "TRITON_*", "FLASHINFER_*", "XDG_*",
)  # fmt: skip


def withheld(environ: Mapping[str, str]) -> dict[str, str]:
    """Return why each variable of the caller that processes of a run do not get is withheld, by name."""
    found = {name: row.reason for name in sorted(environ) if (row := _row(WITHHELD, name)) is not None}
    # A setting that has a key of the profile is told by that.
    return {name: dict(refusals([name])).get(name, why) if _is_setting(name) else why for name, why in found.items()}


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a process of a run gets of the caller's environment; its component's own comes over it."""
    return {name: value for name, value in environ.items() if _row(WITHHELD, name) is None}


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the credentials of the caller that containers get, too."""
    return {name: environ[name] for name in CREDENTIALS if environ.get(name)}


def refusals(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return which variables a profile cannot set, each with its reason."""
    for name in names:
        row = _row(REFUSED, name)
        if row is not None:
            yield name, row.reason


def facts(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the names of what was withheld and of what was passed on, without any value."""
    return {
        "withheld": list(withheld(environ)),
        "passed": sorted(name for name in inherited(environ) if _among(name, _WORTH_NAMING)),
    }


def overriding(environ: Mapping[str, str]) -> list[str]:
    """Return the names of settings of vLLM and LMCache that were withheld: whoever set them will miss them."""
    return list(filter(_is_setting, withheld(environ)))


def inheritance_line(environ: Mapping[str, str]) -> str:
    """Return the line that says so, "" where there are none."""
    names = overriding(environ)
    if not names:
        return ""
    why = dict(refusals(names))
    told_ = ", ".join(f"{name} ({why[name]})" if name in why else name for name in names)
    return f"withheld from all processes of the run: {told_}; settings of an engine belong in the profile's env"


def _is_setting(name: str) -> bool:
    return name.startswith(("LMCACHE_", "VLLM_"))


def _row(rows: Iterable[Names], name: str) -> Names | None:
    return next((row for row in rows if row.has(name)), None)


@lru_cache(maxsize=4096)
def _among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
