"""Log lines of ended processes and of the consequences, in the words of vLLM 0.11 to 0.32, Python and the kernel."""

from __future__ import annotations

from pytest_kvcache.serving.diagnosis.cause import cause

#: What to do where a process has ended and its log cannot say why.
KILLED = (
    "not by its own doing: look for the kernel's OOM killer (`dmesg`, `journalctl -k`, a container's memory limit) or "
    "a person; where it was memory, lower l1_size_gb"
)
#: What to do where shared memory is full.
DEV_SHM = (
    "shared memory (/dev/shm) is full or too small: enlarge it (a container's --shm-size, or --ipc=host), and remove "
    "what ended runs left there"
)
_DIED = r"(?:died unexpectedly \(exit code: |died with exit code |exit ?code[:=] ?|proc\(s\): \{[^}]*: )"

ENDINGS = (
    # Processes that were ended from outside, or by a fault of compiled code.
    cause(
        "killed", "signal", rf"{_DIED}-9\b|signal (?:9\b|SIGKILL)|<Signals\.SIGKILL|^Killed$|exit code 137\b", KILLED
    ),
    cause("bus-error", "signal", rf"{_DIED}-7\b|signal (?:7\b|SIGBUS)|<Signals\.SIGBUS|Bus error", DEV_SHM),
    cause(
        "illegal-instruction",
        "signal",
        rf"{_DIED}-4\b|signal (?:4\b|SIGILL)|<Signals\.SIGILL|Illegal instruction",
        "this processor lacks instructions that the engine was built for: vLLM's CPU build needs AVX2 (`lscpu`)",
    ),
    cause(
        "crash",
        "signal",
        rf"{_DIED}-(?:6|11)\b|signal (?:6|11|SIGABRT|SIGSEGV)\b|<Signals\.SIG(?:ABRT|SEGV)|Segmentation fault",
        "compiled code crashed: packages that were built for different versions do this; the lines before it and "
        "`dmesg` may say which",
    ),
    # Consequences of another process's end, or of being told to end. They stand before causes with the same words.
    cause("death", "death", r"^(?:Ray)?Worker ?proc \S+ died unexpectedly(?! \(exit code: \d)", KILLED),
    # This line quotes what the worker has said itself, and may stand before the worker's own line.
    cause(
        "second-hand", "second-hand", r"Worker failed with error .*please check the stack trace", "read the log above"
    ),
    # Where the model runs in the engine's process, vLLM 0.32 says only this of one that was killed.
    cause(
        "engine-death",
        "engine-death",
        r"Engine core proc(?:ess)? \S+ died unexpectedly|engine core exited unexpectedly",
        KILLED,
    ),
    cause(
        "consequence",
        "consequence",
        r"initialization failed.*see (?:root cause|stack trace)|See (?:root cause|stack trace) (?:above|for root)|"
        r"WorkerProc (?:initialization failed|hit an exception)|Executor failed|output_handler failed|"
        r"EngineDeadError|EngineCore (?:failed to start|encountered)|Engine Exception caught|"
        r"died unexpectedly|died with exit code|"
        r"^(?:\w+\.)*(?:BrokenPipe|ConnectionReset|ConnectionAborted|Cancelled|EOF|IncompleteRead|"
        r"ServerDisconnected|ClientOS|EngineGenerate)Error\b|"
        r"^RuntimeError: cancelled|\[Errno (?:32|104|103)\]|"
        r"^(?:\w+\.)*(?:KeyboardInterrupt|SystemExit|ContextTerminated|EndOfStream|ClosedResourceError)\b|"
        r"\bSIG(?:TERM|INT)\b|terminated with signal (?:15|2)\b|Received (?:signal|KeyboardInterrupt)|"
        r"Shutting down|shutdown (?:initiated|complete)|"
        r"(?:gloo|TCPStore|NCCL|Dist\w+Error).*(?:closed by|reset by|Broken pipe|remote process exited)|"
        r"Event loop (?:is closed|stopped)|leaked (?:shared_memory|semaphore)|"
        r"Timed out waiting for engine|ZMQError: (?:Socket operation on non-socket|Context was terminated)|"
        r"(?:S3 connection disabled|S3L2Adapter disabled) after|Task exception was never retrieved|"
        r"(?:Worker|Engine core) proc(?:ess)? .*(?:exited|terminated)",
        "this only follows from what ended another process: see the logs beside this one, and `dmesg` for one that was "
        "killed",
    ),
)
