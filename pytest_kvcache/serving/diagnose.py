"""Why a component failed, read off its log: the first cause, not the last traceback, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# "(EngineCore pid=12) ERROR 11-24 04:25:32 [core.py:1510] ", "[2026-11-24 04:23:11,138] LMCache ERROR:", colours.
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(
    r"^(\([\w\- ]+pid=\d+\)\s*)?((ERROR|CRITICAL|FATAL)\s+[\d\-]+\s[\d:.]+\s+(\[[^\]]+\]\s?)?)?"
    r"(\[[\d\-]+ [\d:,]+\]\s+\w+\s+(ERROR|CRITICAL):\s*)?"
)
_EXCEPTION = re.compile(r"^(?:[\w]+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Refused)\b(?::| -|$)")
_USAGE = re.compile(r"\berror: (?:argument|unrecognized|the following|invalid|unexpected|a value)")
_PANIC = re.compile(r"panicked at|^fatal error:|^Failed to |^NOTICE: Failed|CRITICAL:|^Error: ", re.IGNORECASE)
#: Exceptions that only report that another process failed.
_SECOND_HAND = re.compile(
    r"Engine core initialization failed|See root cause above|WorkerProc initialization failed|died unexpectedly|"
    r"Executor failed|EngineDeadError"
)
#: Lines that may hold the hint where the cause does not: programs say much about memory and keys in passing.
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|Error\b|\berror:")

#: Where to look when a process has ended and its log cannot say why.
KILLED = "not by its own doing: look for the kernel's OOM killer (`dmesg`, `journalctl -k`) or a person"

_HINTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), hint)
    for pattern, hint in (
        (
            r"max seq len.*larger than the available KV cache|max_model_len.*(larger|greater)|"
            r"estimated maximum model length",
            "max_model_len does not fit in the device cache: lower max_model_len or raise device_blocks "
            "(vLLM keeps one block for itself)",
        ),
        (
            r"less than desired (GPU|CPU) memory utilization|gpu_memory_utilization|Free memory on device",
            "not enough free memory for --gpu-memory-utilization: lower it in the profile's vllm_args, or end "
            "what else uses the memory",
        ),
        (
            r"address already in use|errno 98|EADDRINUSE",
            "another program took the port after it was chosen: run again (`ss -ltnp` shows who)",
        ),
        (
            r"No module named|ModuleNotFoundError|ImportError|cannot open shared object",
            "a package or library is missing in the engine environment: `pytest-kvcache setup`, or repair the "
            "one that --kv-engine names",
        ),
        (r"out of memory|OutOfMemoryError", "GPU memory is used up: lower max_model_len or l1_size_gb"),
        (
            r"not a valid model identifier|LocalEntryNotFound|offline mode|couldn't connect to",
            "the model is not on this machine and cannot be downloaded: fetch it once, or set the profile's model "
            "to a folder",
        ),
        (
            r"No supported cpu connector",
            "LMCache has no connector for CPU tensors of its own, and ours was not loaded: run `pytest-kvcache setup` "
            '(and leave it in VLLM_PLUGINS where that is set), or set lmcache_mode = "mp" in the profile',
        ),
        (
            r"error: (argument|unrecognized|invalid)",
            "this version does not know an argument of the profile: `pytest-kvcache render` shows the command",
        ),
        (
            r"found no credentials|Unable to locate credentials|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|"
            r"AWS_ERROR_S3_INVALID_RESPONSE_STATUS",
            "the S3 service answers and refuses: check that the keys are still valid, may write, and that the bucket "
            "is there (`pytest-kvcache doctor --tier NAME` says which)",
        ),
        # As a cause only: a worker that failed has said why before.
        (r"^Worker proc \S+ died unexpectedly", KILLED),
        (r"No space left on device|Disk quota exceeded", "free space in the tier's storage, or raise the quota"),
        (r"Read-only file system", "the tier's file system is read-only, or has become so: `dmesg` says why"),
    )
)


@dataclass(frozen=True)
class Diagnosis:
    """What a log says.

    Args:
        cause: The first line that states a cause, "" for an empty log.
        hint: What to do about a known cause, "" for an unknown one.
    """

    cause: str
    hint: str


def diagnose(log: str) -> Diagnosis:
    """Find the first cause in a component's log.

    A failed vLLM logs the worker's error first, then every layer above reports its own: the first exception line
    that is not second-hand is the cause.
    """
    raw = log.splitlines()
    lines = [_strip(line) for line in raw]
    cause = ""
    for test in (_is_exception, _USAGE.search, _PANIC.search, _SECOND_HAND.search):
        cause = next((line for line in lines if test(line)), "")
        if cause:
            break
    if not cause:
        cause = next((line for line in reversed(lines) if line.strip()), "")
    hint = next((hint for pattern, hint in _HINTS if pattern.search(cause)), "")
    if not hint:
        errors = [line for line in raw[-200:] if _ERROR.search(line)]
        hint = next((hint for pattern, hint in _HINTS if any(pattern.search(x) for x in errors)), "")
    return Diagnosis(cause=cause.strip()[:500], hint=hint)


def diagnose_file(path: Path) -> Diagnosis:
    """Return the diagnosis of the log at `path`; of an absent one, an empty diagnosis."""
    try:
        return diagnose(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return Diagnosis("", "")


def exception_in(log: str) -> Diagnosis:
    """Return the first exception in the log of a component that lives, and its hint; empty where there is none."""
    cause = next((line for line in map(_strip, log.splitlines()) if _is_exception(line)), "")
    hint = next((hint for pattern, hint in _HINTS if pattern.search(cause)), "")
    return Diagnosis(cause=cause.strip()[:500], hint=hint)


def _strip(line: str) -> str:
    plain = _ANSI.sub("", line)
    return _PREFIX.sub("", plain, count=1)


def _is_exception(line: str) -> bool:
    return bool(_EXCEPTION.search(line)) and not _SECOND_HAND.search(line)
