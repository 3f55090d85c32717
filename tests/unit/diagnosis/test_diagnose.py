"""The first cause in a failed component's log, and the hint for it."""

from __future__ import annotations

import pytest

from pytest_kvcache.serving.diagnosis.diagnose import diagnose, failed_storage

KV_TOO_SMALL = """\
(APIServer pid=5) INFO 11-24 04:25:10 [api_server.py:1] starting
(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510]   File "core.py", line 1482, in run_engine_core
(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510]     raise ValueError(
(EngineCore pid=7) ERROR 11-24 04:25:32 [core.py:1510] ValueError: To serve at least one request with the model's max \
seq len (5120), (0.02 GiB KV cache is needed, which is larger than the available KV cache memory (0.02 GiB). Try \
increasing `gpu_memory_utilization` or decreasing `max_model_len`.
(EngineCore pid=7) ERROR 11-24 04:25:35 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly
Traceback (most recent call last):
  File "core_client.py", line 9, in launch
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

WORKER_KILLED = """\
(APIServer pid=3) INFO 11-24 13:00:47 [api_utils.py:286] non-default args: {'gpu_memory_utilization': 0.1}
(EngineCore pid=1) ERROR 11-24 13:01:29 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit \
code: -9), shutting down executor.
(EngineCore pid=1) ERROR 11-24 13:01:29 [core.py:1512] RuntimeError: Executor failed.
(APIServer pid=3) ERROR 11-24 13:01:29 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
RuntimeError: Executor failed.
"""

#: Of vLLM 0.32, the model in the engine's own process.
ENGINE_KILLED = """\
(EngineCore pid=2) INFO 11-29 23:58:31 [block_pool.py:861] Successfully reset prefix cache
(APIServer pid=1) INFO 11-29 23:58:40 [utils.py:628] [shutdown] Process manager: send sigterm to process EngineCore
(APIServer pid=1) WARNING 11-29 23:58:40 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; \
starting cleanup
(APIServer pid=1) ERROR 11-29 23:58:40 [async_llm.py:906] AsyncLLM output_handler failed.
(APIServer pid=1) ERROR 11-29 23:58:40 [async_llm.py:906] Traceback (most recent call last):
(APIServer pid=1) ERROR 11-29 23:58:40 [async_llm.py:906]   File "core_client.py", line 1235, in get_output_async
(APIServer pid=1) ERROR 11-29 23:58:40 [async_llm.py:906]     raise self._format_exception(outputs) from None
(APIServer pid=1) ERROR 11-29 23:58:40 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
(APIServer pid=1) ERROR 11-29 23:58:41 [vllm_error.py:54] Engine Exception caught. Request id: None
(APIServer pid=1) ERROR 11-29 23:58:41 [vllm_error.py:54] Traceback (most recent call last):
(APIServer pid=1) ERROR 11-29 23:58:41 [vllm_error.py:54]   File "serving.py", line 9, in _preflight
(APIServer pid=1) ERROR 11-29 23:58:41 [vllm_error.py:54]     raise self.engine_client.dead_error
(APIServer pid=1) ERROR 11-29 23:58:41 [vllm_error.py:54] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
INFO:     Shutting down
INFO:     Finished server process [1]
"""
ENGINE_FAILED = (
    "(EngineCore pid=2) ERROR 11-29 23:58:40 [core.py:1512] EngineCore encountered a fatal error.\n"
    "(EngineCore pid=2) ERROR 11-29 23:58:40 [core.py:1512] ValueError: of its own\n"
) + ENGINE_KILLED

WORKER_FAILED = (
    "(Worker pid=9) ERROR 11-24 04:25:32 [w.py:1] ValueError: of its own\n(EngineCore pid=7) ERROR 11-24 04:25:35 "
    "[multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: 1), shutting down executor.\n"
)


@pytest.mark.parametrize(
    ("log", "cause", "hint"),
    [
        (KV_TOO_SMALL, "ValueError: To serve at least one request with the model's max seq len", "max_model_len"),
        (
            "(Worker pid=9) ERROR 11-24 04:25:32 [w.py:1] ValueError: Free memory on device cpu (2/23 GiB) on startup "
            "is less than desired GPU memory utilization (0.92, 21 GiB).\nRuntimeError: Engine core initialization "
            "failed. See root cause above.",
            "ValueError: Free memory on device",
            "--gpu-memory-utilization",
        ),
        (
            "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use",
            "ERROR:    [Errno 98]",
            "took the port",
        ),
        (
            "Traceback (most recent call last):\n  File x\nOSError: [Errno 98] Address already in use",
            "OSError: [Errno 98] Address already in use",
            "took the port",
        ),
        (
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'orjson'",
            "ModuleNotFoundError: No module named 'orjson'",
            "pytest-kvcache setup",
        ),
        (
            "usage: lmcache server [-h]\nlmcache server: error: argument --l1-init-size-gb: invalid int value: '0.1'",
            "lmcache server: error: argument --l1-init-size-gb: invalid int value: '0.1'",
            "pytest-kvcache render",
        ),
        (
            "2026/11/24 04:39:16 NOTICE: Failed to s3: listen tcp 127.0.0.1:9: bind: address already in use",
            "NOTICE: Failed to s3",
            "took the port",
        ),
        (
            "\x1b[31m[2026-11-24 04:23:11,138] LMCache ERROR:\x1b[0m ValueError: No supported cpu connector found",
            "ValueError: No supported cpu connector found",
            'lmcache_mode = "mp"',
        ),
        (WORKER_KILLED, "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)", "OOM killer"),
        (WORKER_FAILED, "ValueError: of its own", ""),
        (ENGINE_KILLED, "engine core exited unexpectedly", "OOM killer"),
        (ENGINE_FAILED, "ValueError: of its own", ""),
        ("all is well\nthe last line\n\n", "the last line", ""),
        ("", "", ""),
    ],
    ids=[
        "kv-cache",
        "memory",
        "uvicorn-port",
        "port",
        "package",
        "usage",
        "rclone",
        "connector",
        "worker",
        "failed-worker",
        "engine",
        "failed-engine",
        "unknown",
        "empty",
    ],
)
def test_first_cause_and_hint(log: str, cause: str, hint: str) -> None:
    """The first line that states a cause is found among what others report of it, and known causes have a hint."""
    found = diagnose(log)
    assert cause in found.cause
    assert hint in found.hint if hint else found.hint == ""


REFUSED = (
    "[2026-11-24 12:39:28,603] LMCache INFO: S3L2Adapter resolving AWS credentials via boto3 delegate\n"
    "Traceback (most recent call last):\n"
    "RuntimeError: S3 PUT failed for tiny@0@fce1: AWS_ERROR_S3_INVALID_RESPONSE_STATUS: Invalid response status\n"
    "OSError: [Errno 28] No space left on device\n"
)


@pytest.mark.parametrize(
    ("log", "cause", "hint"),
    [
        (REFUSED, "RuntimeError: S3 PUT failed", "keys are still valid"),
        ("LMCache ERROR: x\nOSError: [Errno 28] No space left on device: '/mnt/a.tmp'", "OSError: [Errno 28]", "free"),
        ("OSError: [Errno 30] Read-only file system: '/mnt/a.tmp'", "OSError: [Errno 30]", "has become so"),
        ("[2026-11-24 12:39:28,603] LMCache INFO: S3L2Adapter resolving AWS credentials via boto3 delegate", "", ""),
        ("", "", ""),
    ],
    ids=["refused", "full", "read-only", "none", "empty"],
)
def test_the_first_exception_of_a_living_component(log: str, cause: str, hint: str) -> None:
    """What a server that lives complains of is its first exception; where it has none, nothing is made up."""
    found = failed_storage(log)
    assert found.cause.startswith(cause)
    assert bool(found.cause) == bool(cause)
    assert hint in found.hint


def test_a_word_in_passing_is_no_cause() -> None:
    """That credentials were looked for, in a line of information, makes no hint about keys."""
    assert diagnose("[2026] LMCache INFO: S3L2Adapter resolving AWS credentials via boto3 delegate\nlast").hint == ""
