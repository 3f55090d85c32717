"""Logs of components that failed: in the words and with the prefixes of the programs that write them.

Those of vLLM are shortened from logs in its users' reports or follow its sources; all names, addresses and numbers of
processes are made up.
"""

# ruff: noqa: E501 - so are logs

from __future__ import annotations

from dataclasses import dataclass

CORE = "(EngineCore_DP0 pid=306) ERROR 09-28 01:55:42 [core.py:718] "
WORKER = "(Worker_TP0 pid=1143) ERROR 04-01 07:17:10 [multiproc_executor.py:949] "
API = "(APIServer pid=5) "
LMCACHE = "\x1b[31;20m[2026-11-25 11:39:12,914] LMCache ERROR:\x1b[0m "
AT = " \x1b[3m(fs_connector.py:376:lmcache.v1.storage_backend.connector.fs_connector)\x1b[0m"
FS_ADAPTER = '  File "/x/lmcache/v1/distributed/l2_adapters/fs_l2_adapter.py", line 644, in _execute_store\n    await f.write(b)\n'
S3_ADAPTER = (
    '  File "/x/lmcache/v1/distributed/l2_adapters/s3_l2_adapter.py", line 913, in on_done\n    raise RuntimeError(\n'
)
TRACEBACK = "Traceback (most recent call last):\n"


def by(speaker: str, text: str) -> str:
    """Return lines with what a logger puts before each of them."""
    return "".join(f"{speaker}{line}\n" for line in text.splitlines())


def thrown(error: str, frame: str = '  File "/x/vllm/v1/engine/core.py", line 699, in run_engine_core\n') -> str:
    """Return a traceback that ends in an exception."""
    return f"{TRACEBACK}{frame}{error}\n"


@dataclass(frozen=True)
class Case:
    """A log, the line that is its cause, and words of the hint.

    Args:
        root: The part that states the cause, as one process wrote it.
        cause: In what is said of it.
        hint: In what is said to do.
        not_hint: Words of a hint of another kind.
    """

    root: str
    cause: str
    hint: str
    not_hint: str = "\0"


GATED = """\
requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/acme/llama/resolve/main/config.json

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/x/huggingface_hub/utils/_http.py", line 423, in hf_raise_for_status
    raise _format(GatedRepoError, message, response) from e
huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6951;379c)

Cannot access gated repo for url https://huggingface.co/acme/llama/resolve/main/config.json.
Access to model acme/llama is restricted. You must have access to it and be authenticated to access it. Please log in.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/x/transformers/utils/hub.py", line 543, in cached_files
    raise OSError(
OSError: You are trying to access a gated repo.
Make sure to have access to it at https://huggingface.co/acme/llama.
401 Client Error. (Request ID: Root=1-6951;379c)
"""

CASES: dict[str, Case] = {
    "gated-model": Case(
        by(API, TRACEBACK + '  File "/x/requests/models.py", line 1026, in raise_for_status\n' + GATED),
        "requests.exceptions.HTTPError: 401 Client Error",
        "HF_TOKEN",
        "cannot be downloaded",
    ),
    "gated-model-wrapped": Case(
        by(
            API,
            thrown(
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
                "  Value error, You are trying to access a gated repo.\n"
                "Make sure to have access to it at https://huggingface.co/acme/llama."
            ),
        ),
        "1 validation error for ModelConfig … Value error, You are trying to access a gated repo.",
        "HF_TOKEN",
    ),
    "token-without-the-right": Case(
        by(API, thrown("huggingface_hub.errors.HfHubHTTPError: 403 Client Error: Forbidden for url: https://h/x")),
        "403 Client Error",
        "HF_TOKEN",
    ),
    "no-such-model": Case(
        by(
            API,
            thrown(
                "OSError: acme/none is not a local folder and is not a valid model identifier listed on "
                "'https://huggingface.co/models'\nIf this is a private repository, make sure to pass a token"
            ),
        ),
        "OSError: acme/none is not a local folder",
        "fetch it once",
    ),
    "oom-killer-at-boot": Case(
        by(
            API,
            thrown(
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
                "{'EngineCore': -9}"
            ),
        ),
        "{'EngineCore': -9}",
        "OOM killer",
    ),
    "oom-killer-of-two": Case(
        by(
            API,
            thrown("RuntimeError: Engine core init. Failed core proc(s): {'EngineCore_DP0': 1, 'EngineCore_DP1': -9}"),
        ),
        "'EngineCore_DP1': -9",
        "OOM killer",
    ),
    "oom-killer-of-a-server": Case(
        thrown("RuntimeError: Process ApiServer_0 (PID: 77) died with exit code -9"),
        "died with exit code -9",
        "OOM killer",
    ),
    "worker-killed": Case(
        "(EngineCore pid=1) ERROR 11-24 13:01:29 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly "
        "(exit code: -9), shutting down executor.\n",
        "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)",
        "OOM killer",
    ),
    "worker-killed-before-0.25": Case(
        "(EngineCore_DP0 pid=1) ERROR 11-24 13:01:29 [multiproc_executor.py:154] Worker proc VllmWorker-0 died "
        "unexpectedly, shutting down executor.\n",
        "Worker proc VllmWorker-0 died unexpectedly, shutting down executor.",
        "OOM killer",
    ),
    "worker-without-shared-memory": Case(
        "(EngineCore pid=1) ERROR 11-24 13:01:29 [multiproc_executor.py:315] Worker proc VllmWorker-1 died unexpectedly "
        "(exit code: -7), shutting down executor.\n",
        "(exit code: -7)",
        "--shm-size",
        "OOM killer",
    ),
    "gpu-memory": Case(
        by(
            CORE,
            thrown(
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of "
                "11.53 GiB of which 187.75 MiB is free."
            ),
        ),
        "torch.OutOfMemoryError: CUDA out of memory",
        "lower --gpu-memory-utilization",
    ),
    "gpu-memory-of-the-driver": Case(
        by(WORKER, thrown("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be reported later")),
        "RuntimeError: CUDA error: out of memory",
        "nvidia-smi",
    ),
    "gpu-taken": Case(
        by(
            CORE,
            thrown(
                "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory "
                "utilization (0.9, 71.3 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
            ),
        ),
        "ValueError: Free memory on device cuda:0",
        "end what else uses the memory",
    ),
    "no-room-for-kv": Case(
        by(
            CORE,
            thrown("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
        ),
        "No available memory for the cache blocks",
        "raise --gpu-memory-utilization",
    ),
    "kv-cache": Case(
        by(
            CORE,
            thrown(
                "ValueError: To serve at least one request with the model's max seq len (40960), (5.62 GiB KV cache is "
                "needed, which is larger than the available KV cache memory (3.10 GiB). Based on the available memory, "
                "the estimated maximum model length is 22560. Try increasing `gpu_memory_utilization`"
            ),
        ),
        "max seq len (40960)",
        "device_blocks",
        "--gpu-memory-utilization",
    ),
    "model-length": Case(
        by(
            API,
            thrown(
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, "
                "User-specified max_model_len (99999) is greater than the derived max_model_len (max_position_embeddings"
                "=40960)"
            ),
        ),
        "max_model_len (99999)",
        "than the model was made for",
        "device_blocks",
    ),
    "host-memory": Case(
        by(
            CORE, thrown("RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        ),
        "can't allocate memory",
        "l1_size_gb",
        "nvidia-smi",
    ),
    "mixed-attention": Case(
        by(
            WORKER,
            thrown(
                "ValueError: Hybrid KV cache manager is disabled but failed to convert the KV cache specs to one unified "
                "type."
            ),
        ),
        "failed to convert the KV cache specs to one unified type",
        "hybrid KV cache manager (HMA)",
    ),
    "mixed-attention-0.32": Case(
        by(CORE, thrown("ValueError: Failed to promote local KV cache specs to one unified type.")),
        "Failed to promote local KV cache specs",
        "hybrid KV cache manager (HMA)",
    ),
    "no-hma": Case(
        by(
            CORE,
            thrown(
                "ValueError: Connector LMCacheConnectorV1 does not support HMA but HMA is enabled. Please set "
                "`--disable-hybrid-kv-cache-manager`."
            ),
        ),
        "does not support HMA",
        "add --disable-hybrid-kv-cache-manager",
    ),
    "zmq-argument": Case(
        by(API, thrown("zmq.error.ZMQError: Invalid argument (addr='tcp://gpu-node-1:5557')")),
        "zmq.error.ZMQError: Invalid argument (addr='tcp://gpu-node-1:5557')",
        "VLLM_HOST_IP",
        "argument of the profile",
    ),
    "zmq-address": Case(
        by(API, thrown("zmq.error.ZMQError: Cannot assign requested address (addr='tcp://10.27.91.102:13345')")),
        "Cannot assign requested address",
        "VLLM_HOST_IP",
    ),
    "zmq-port": Case(
        by(API, thrown("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5570')")),
        "Address already in use",
        "took the port",
    ),
    "zmq-path": Case(
        by(
            CORE,
            thrown(
                'zmq.error.ZMQError: ipc path "/long/x" is longer than 107 characters (sizeof(sockaddr_un.sun_path)).'
            ),
        ),
        "is longer than 107 characters",
        "TMPDIR",
    ),
    "too-few-gpus": Case(
        by(
            WORKER,
            thrown(
                "RuntimeError: CUDA error: invalid device ordinal\nCUDA kernel errors might be asynchronously reported at "
                "some other API call, so the stacktrace below might be incorrect.\nFor debugging consider passing "
                "CUDA_LAUNCH_BLOCKING=1"
            ),
        ),
        "RuntimeError: CUDA error: invalid device ordinal",
        "gpus_per_server",
        "argument of the profile",
    ),
    "no-gpus": Case(
        by(CORE, thrown("RuntimeError: No CUDA GPUs are available")),
        "No CUDA GPUs are available",
        "CUDA_VISIBLE_DEVICES",
    ),
    "driver": Case(
        by(
            CORE,
            thrown("RuntimeError: CUDA error: no kernel image is available for execution on the device"),
        ),
        "no kernel image",
        "another GPU or a newer driver",
    ),
    "nccl-shm": Case(
        by(
            "(VllmWorker rank=1 pid=5356) ERROR 04-25 10:24:22 [multiproc_executor.py:380] ",
            thrown(
                "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:317, "
                "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\n"
                "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
                "Last error:\n"
                "Error while creating shared memory segment /dev/shm/nccl-EoOvZr (size 7340384), error: No space left on "
                "device (28)"
            ),
        ),
        "Error while creating shared memory segment /dev/shm/nccl-EoOvZr",
        "--shm-size",
        "tier's storage",
    ),
    "nccl-shm-warned": Case(
        "gpu-1:812:812 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so: cannot open shared object file\n"
        "gpu-1:812:975 [0] misc/shmutils.cc:87 NCCL WARN Call to posix_fallocate failed: No space left on device\n"
        + by(WORKER, thrown("RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)")),
        "posix_fallocate failed",
        "--shm-size",
        "tier's storage",
    ),
    "python-shm": Case(
        by(
            CORE,
            thrown(
                "OSError: [Errno 28] No space left on device: '/psm_1f2e3d4c'",
                '  File "/x/multiprocessing/shared_memory.py", line 119, in __init__\n',
            ),
        ),
        "OSError: [Errno 28] No space left on device: '/psm_1f2e3d4c'",
        "--shm-size",
        "tier's storage",
    ),
    "compile-cache-full": Case(
        by(CORE, thrown("OSError: [Errno 28] No space left on device: '/root/.cache/vllm/torch_compile_cache/a'")),
        "torch_compile_cache",
        "file system of the file that the log names",
        "tier's storage",
    ),
    "undefined-symbol": Case(
        by(
            CORE,
            thrown(
                "ImportError: /x/lmcache/c_ops.cpython-312-x86_64-linux-gnu.so: undefined symbol: _ZN3c104cuda9SetDeviceEa"
            ),
        ),
        "undefined symbol: _ZN3c104cuda9SetDeviceEa",
        "built for another version of torch",
        "is missing",
    ),
    "undefined-symbol-on-two-lines": Case(
        by(
            "(VllmWorker rank=3 pid=150413) ERROR 04-24 07:04:06 [multiproc_executor.py:435] ",
            thrown(
                "ImportError: /x/torchac_cuda.cpython-310-x86_64-linux-gnu.so:\n undefined symbol: _ZN3c106detail23"
            ),
        ),
        "undefined symbol: _ZN3c106detail23",
        "built for another version of torch",
    ),
    "package": Case(
        thrown("ModuleNotFoundError: No module named 'orjson'"), "No module named 'orjson'", "pytest-kvcache setup"
    ),
    "argument": Case(
        "usage: vllm serve [-h]\nvllm serve: error: unrecognized arguments: --no-such 1\n",
        "unrecognized arguments: --no-such",
        "pytest-kvcache render",
    ),
    "argument-of-the-router": Case(
        "error: unexpected argument '--worker-urls' found\n", "unexpected argument", "pytest-kvcache render"
    ),
    "port": Case(
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use\n",
        "address already in use",
        "took the port",
    ),
    "folder-not-permitted": Case(
        thrown(
            "PermissionError: [Errno 13] Permission denied: '/mnt/kv/kvcache-R1-pnfs/.tmp-0'",
            '  File "/x/lmcache/v1/distributed/l2_adapters/fs_l2_adapter.py", line 276, in __init__\n    mkdir(\n',
        ),
        "PermissionError: [Errno 13]",
        "root_squash",
    ),
    "cache-not-permitted": Case(
        by(API, thrown("PermissionError: [Errno 13] Permission denied: '/root/.cache/huggingface/hub'")),
        "PermissionError: [Errno 13]",
        "may not use the file",
        "tier's folder",
    ),
    "no-cpu-connector": Case(
        f"{LMCACHE}ValueError: No supported cpu connector found\n", "No supported cpu connector", 'lmcache_mode = "mp"'
    ),
}

#: What LMCache says of stores and loads that failed, beside vLLM and inside it.
STORAGE: dict[str, Case] = {
    "same-temporary-file": Case(
        f"{LMCACHE}FSL2Adapter failed to store /kv/m@0x0@0@1.data{AT}\n"
        + thrown(
            "FileNotFoundError: [Errno 2] No such file or directory: '/kv/m@0x0@0@1.tmp' -> '/kv/m@0x0@0@1.data'",
            FS_ADAPTER,
        ),
        "FileNotFoundError: [Errno 2]",
        "temporary folder of its own",
    ),
    "same-temporary-file-inside": Case(
        f"{LMCACHE}Failed to write file /kv/m@1@0@2@bf16.data: [Errno 2] No such file or directory: "
        f"'/kv/m@1@0@2@bf16.tmp' -> '/kv/m@1@0@2@bf16.data'{AT}\n"
        f"{LMCACHE}Put task failed for key m: [Errno 2] No such file or directory\n",
        "Failed to write file /kv/m@1@0@2@bf16.data",
        "temporary folder of its own",
    ),
    "no-space": Case(
        f"{LMCACHE}FSL2Adapter failed to store /kv/m@0x0@0@1.data{AT}\n"
        + thrown("OSError: [Errno 28] No space left on device", FS_ADAPTER),
        "OSError: [Errno 28]",
        "tier's storage",
        "--shm-size",
    ),
    "no-space-inside": Case(
        f"(EngineCore pid=9) {LMCACHE}Failed to write file /kv/m@1@0@2@bf16.data: [Errno 28] No space left on device{AT}\n",
        "Failed to write file /kv/m@1@0@2@bf16.data: [Errno 28] No space left on device",
        "tier's storage",
    ),
    "read-only-inside": Case(
        f"(EngineCore pid=9) {LMCACHE}Failed to write file /kv/m.data: [Errno 30] Read-only file system: '/kv/m.tmp'{AT}\n",
        "Read-only file system: '/kv/m.tmp'",
        "`dmesg` says why",
    ),
    "not-permitted": Case(
        f"{LMCACHE}FSL2Adapter failed to store /kv/m.data{AT}\n"
        + thrown("PermissionError: [Errno 13] Permission denied: '/kv/.tmp-0/m.data'", FS_ADAPTER),
        "PermissionError: [Errno 13]",
        "tier's folder",
    ),
    "mount-gone": Case(
        f"{LMCACHE}FSL2Adapter failed to store /kv/m.data{AT}\n"
        + thrown("OSError: [Errno 116] Stale file handle", FS_ADAPTER),
        "Stale file handle",
        "mount it anew",
    ),
    "s3-name": Case(
        f"{LMCACHE}S3L2Adapter failed to launch PUT\n"
        + thrown(
            "RuntimeError: S3 PUT failed for m: AWS_IO_DNS_INVALID_NAME: Host name was invalid for dns resolution.",
            S3_ADAPTER,
        ),
        "AWS_IO_DNS_INVALID_NAME",
        "virtual-hosted style only",
        "keys are still valid",
    ),
    "s3-name-of-boto": Case(
        thrown(
            'botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL: "https://kv.minio:9000/"'
        ),
        "Could not connect to the endpoint URL",
        "virtual-hosted style only",
    ),
    "s3-style": Case(
        thrown("RuntimeError: S3 PUT failed for m@0x0@0@1: 404", S3_ADAPTER),
        "S3 PUT failed",
        "virtual-hosted style only",
    ),
    "s3-no-bucket": Case(
        thrown("botocore.errorfactory.NoSuchBucket: An error occurred (NoSuchBucket) when calling ListObjectsV2"),
        "NoSuchBucket",
        "virtual-hosted style only",
    ),
    "s3-refused": Case(
        thrown(
            "RuntimeError: S3 PUT failed for m: AWS_ERROR_S3_INVALID_RESPONSE_STATUS: Invalid response status",
            S3_ADAPTER,
        ),
        "RuntimeError: S3 PUT failed",
        "keys are still valid",
    ),
    "s3-refused-inside": Case(
        f"{LMCACHE}Failed to upload m to S3: AWS_ERROR_S3_INVALID_RESPONSE_STATUS: Invalid response status from request\n",
        "Failed to upload m to S3",
        "keys are still valid",
    ),
    "s3-certificate": Case(
        thrown(
            "RuntimeError: S3 PUT failed for m: AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE: TLS negotiation failed",
            S3_ADAPTER,
        ),
        "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE",
        "certificate",
    ),
    "s3-unreachable": Case(
        thrown(
            "RuntimeError: S3 GET failed for m: AWS_IO_SOCKET_CONNECTION_REFUSED: socket connection refused.",
            S3_ADAPTER,
        ),
        "AWS_IO_SOCKET_CONNECTION_REFUSED",
        "is the service up",
    ),
}

#: What follows from another process's end, or from being told to end; each as its process writes it.
CONSEQUENCES: tuple[str, ...] = (
    by("(EngineCore pid=7) ERROR 11-24 13:01:29 [core.py:1512] ", "EngineCore encountered a fatal error."),
    by("(EngineCore pid=7) ERROR 11-24 13:01:29 [core.py:1512] ", thrown("RuntimeError: cancelled")),
    by("(EngineCore pid=7) ERROR 11-24 13:01:29 [core.py:1512] ", thrown("RuntimeError: Executor failed.")),
    "RuntimeError: cancelled\n",
    by(CORE, "EngineCore failed to start."),
    by(API, thrown("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")),
    by(
        API,
        thrown(
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
        ),
    ),
    by(
        "(APIServer pid=3) ERROR 11-24 13:01:29 [async_llm.py:906] ",
        thrown(
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the "
            "root cause."
        ),
    ),
    by(
        CORE,
        thrown(
            "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for "
            "root cause."
        ),
    ),
    "(EngineCore pid=7) ERROR 11-24 04:25:35 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit "
    "code: 1), shutting down executor.\n",
    "(APIServer pid=3) ERROR 11-24 04:25:35 [core_client.py:692] Engine core proc EngineCore_DP0 died unexpectedly, "
    "shutting down client.\n",
    thrown("RuntimeError: Engine core process EngineCore_DP0 died unexpectedly."),
    by(
        "(APIServer pid=1) ERROR 11-29 23:58:41 [vllm_error.py:54] ",
        "Engine Exception caught. Request id: None\n"
        + thrown("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)"),
    ),
    thrown("asyncio.exceptions.CancelledError"),
    "concurrent.futures._base.CancelledError\n",
    thrown("BrokenPipeError: [Errno 32] Broken pipe"),
    by(WORKER, thrown("ConnectionResetError: [Errno 104] Connection reset by peer")),
    thrown("EOFError"),
    thrown("KeyboardInterrupt"),
    by(
        WORKER, "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed by peer."
    ),
    by(API, "INFO:     Shutting down"),
    "(APIServer pid=3) INFO 11-24 13:01:29 [launcher.py:110] Shutting down FastAPI HTTP server.\n",
    "/x/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory "
    "objects to clean up at shutdown\n",
    f"{LMCACHE}S3L2Adapter disabled after 3 consecutive connection failures\n",
    "(Worker pid=20644) ERROR 11-25 11:41:46 [multiproc_executor.py:1063] WorkerProc hit an exception.\n",
    "(APIServer pid=3) ERROR 11-25 11:43:59 [async_llm.py:906] AsyncLLM output_handler failed.\n",
    by(
        CORE,
        thrown(
            "RuntimeError: Worker failed with error ''config'', please check the stack trace above for the root cause"
        ),
    ),
    by(
        CORE,
        thrown(
            "RuntimeError: Worker failed with error 'CUDA out of memory. Tried to allocate 2 GiB', please check the stack "
            "trace above for the root cause"
        ),
    ),
)
