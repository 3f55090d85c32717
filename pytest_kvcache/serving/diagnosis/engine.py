"""Why vLLM, LMCache and the router cannot start or go on.

The words are from the sources of vLLM 0.11 to 0.32, huggingface_hub and NCCL, and from logs in their users' reports.
"""

from __future__ import annotations

from pytest_kvcache.serving.diagnosis.cause import cause
from pytest_kvcache.serving.diagnosis.endings import DEV_SHM

_SHARED_MEMORY = r"shared_memory\.py|shm_broadcast|/psm_|/torch_\w+_\d|posix_fallocate|NCCL|nccl"

ENGINE = (
    # The model.
    cause(
        "gated-model",
        "root",
        r"\b40[13] Client Error\b(?!.*\bs3\b)|GatedRepoError|gated repo|is restricted\. You must have access|"
        r"public gated repositories|(?:401 Unauthorized|403 Forbidden).*huggingface",
        "the hub gives this model to nobody without a token that may read it: check its name, accept its terms on its "
        "page and set HF_TOKEN in the environment, or set the profile's model to a folder",
    ),
    cause(
        "no-model",
        "root",
        r"not a valid model identifier|Invalid repository ID or local directory|LocalEntryNotFound|offline mode|"
        r"couldn't connect to|RepositoryNotFound|Repository Not Found|"
        r"huggingface\.co.*(?:NameResolution|Max retries|resolve)|"
        r"(?:NameResolution|resolve|Max retries).*huggingface\.co",
        "the model is not on this machine and cannot be downloaded: fetch it once, or set the profile's model to a "
        "folder; a private one needs HF_TOKEN",
    ),
    cause(
        "model-length",
        "root",
        r"max_model_len \(\d+\) is greater than the derived",
        "max_model_len is more than the model was made for: lower it in the profile",
    ),
    # Memory.
    cause(
        "kv-cache",
        "root",
        r"max seq len.*larger than the (?:available KV cache|maximum number of tokens that can be stored)|"
        r"estimated maximum model length",
        "max_model_len does not fit in the device cache: lower max_model_len or raise device_blocks (vLLM keeps one "
        "block for itself)",
    ),
    cause(
        "no-room-for-kv",
        "root",
        r"No available memory for the cache blocks",
        "the model leaves no room for KV: raise --gpu-memory-utilization in the profile's vllm_args, or take more "
        "GPUs a server",
    ),
    cause(
        "memory-taken",
        "root",
        r"less than desired (?:GPU|CPU) memory utilization|Free memory on device.*is less than",
        "not enough free memory for --gpu-memory-utilization: lower it in the profile's vllm_args, or end what else "
        "uses the memory (`nvidia-smi`)",
    ),
    cause(
        "gpu-memory",
        "root",
        r"(?:CUDA|HIP)(?: driver)?(?: error)?: ?out of memory|(?:CUDA|HIP) out of memory|OutOfMemoryError|"
        r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation",
        "GPU memory is used up: lower --gpu-memory-utilization or max_model_len in the profile, or end what else runs "
        "there (`nvidia-smi`)",
    ),
    cause(
        "host-memory",
        "root",
        r"Cannot allocate memory|can't allocate memory|^MemoryError\b|std::bad_alloc|\[Errno 12\]|cudaHostAlloc|"
        r"allocate.*pinned memory",
        "RAM is used up: each LMCache takes l1_size_gb of it at its start, inside vLLM each GPU's process does; lower "
        "it (`free -g`, `ulimit -l`)",
    ),
    # Demands of the profile and of the connector.
    cause(
        "mixed-attention",
        "root",
        r"KV cache specs to one unified type",
        "this model mixes kinds of attention, and vLLM keeps one kind of cache with a connector that does not support "
        "its hybrid KV cache manager (HMA): take another model, or versions whose connector does",
    ),
    cause(
        "no-hma",
        "root",
        r"does not support HMA|only works without hybrid kv cache manager",
        "add --disable-hybrid-kv-cache-manager to the profile's vllm_args: this connector does not support HMA",
    ),
    cause(
        "no-cpu-connector",
        "root",
        r"No supported cpu connector",
        "LMCache has no connector for CPU tensors of its own, and ours was not loaded: run `pytest-kvcache setup` (and "
        'leave it in VLLM_PLUGINS where that is set), or set lmcache_mode = "mp" in the profile',
    ),
    cause(
        "too-few-gpus",
        "root",
        r"invalid device ordinal|CUDA_ERROR_INVALID_DEVICE|larger than the number of available GPUs|"
        r"No CUDA GPUs are available|no CUDA-capable device",
        "vLLM sees fewer GPUs than it is to use: compare servers and gpus_per_server of the profile with `nvidia-smi "
        "-L` and CUDA_VISIBLE_DEVICES",
    ),
    cause(
        "driver",
        "root",
        r"driver version is insufficient|NVIDIA driver on your system is too old|no kernel image is available|"
        r"unsupported toolchain|forward compatibility was attempted|system not yet initialized",
        "this engine was built for another GPU or a newer driver: `nvidia-smi` says which CUDA the driver has",
    ),
    cause(
        "argument",
        "root",
        r"(?:^|^\S[\w ./-]*: )error: (?:argument |unrecognized argument|the following (?:required )?arguments|"
        r"ambiguous option|unexpected argument|invalid (?:value|choice)|a value is required)",
        "this version does not know an argument of the profile: `pytest-kvcache render` shows the command",
    ),
    # The machine.
    cause(
        "shared-memory",
        "root",
        r"shared memory segment|posix_fallocate.*fail|insufficient shared memory|/dev/shm\S* .*(?:fail|No space|bytes)|"
        r"failed to extend /dev/shm|No space left.*/dev/shm",
        DEV_SHM,
    ),
    cause("shared-memory", "root", r"No space left on device|\[Errno 28\]", DEV_SHM, context=_SHARED_MEMORY),
    cause(
        "port",
        "root",
        r"address (?:already )?in use|errno 98\b|EADDRINUSE",
        "another program took the port after it was chosen: run again (`ss -ltnp` shows who)",
    ),
    cause(
        "socket-path",
        "root",
        r"is longer than \d+ characters|AF_UNIX path too long",
        "the path of a socket is too long: set TMPDIR to a shorter folder",
    ),
    cause(
        "socket-address",
        "root",
        r"ZMQError: (?:Invalid argument|No such device|Cannot assign requested address|Protocol not supported)|"
        r"\[Errno 99\]",
        "no program can listen or connect there: the name does not resolve or is no address of this machine; look for "
        "VLLM_HOST_IP and other addresses in the environment and in the profile's env",
    ),
    cause(
        "binaries",
        "root",
        r"undefined symbol|symbol lookup error|version `\w+_[\d.]+' not found",
        "a compiled package of the engine environment was built for another version of torch, CUDA or glibc: install "
        "vLLM and LMCache that were built for the same one",
    ),
    cause(
        "package",
        "root",
        r"No module named|^(?:\w+\.)*(?:ModuleNotFound|Import)Error|cannot open shared object",
        "a package or library is missing in the engine environment: `pytest-kvcache setup`, or repair the one that "
        "--kv-engine names",
    ),
)

#: Causes outside the tier's storage, and causes whose words say too little.
ELSEWHERE = (
    # The failures of `STORAGE`, on file systems that are not the tier's.
    cause(
        "no-space-elsewhere",
        "root",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]",
        "free space on the file system of the file that the log names, or raise the quota",
    ),
    cause(
        "read-only-elsewhere",
        "root",
        r"Read-only file system|\[Errno 30\]",
        "the file system of the file that the log names is read-only: `dmesg` says why",
    ),
    cause(
        "not-permitted-elsewhere",
        "root",
        r"Permission denied|\[Errno 13\]",
        "this user may not use the file that the log names: `ls -ld`, `id`",
    ),
    cause(
        "nccl",
        "symptom",
        r"NCCL error|ncclSystemError|ncclInternalError|ncclUnhandledCudaError",
        'set NCCL_DEBUG = "WARN" in the profile\'s env: NCCL then says in the log what failed',
    ),
)
