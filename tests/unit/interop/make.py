"""Folders of runs, as sessions leave them, for the tests of what is exchanged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.verdict.estimate import estimate

STARTED_AT = 1_764_400_000.25
KEYS = {
    "hardware.cpu": "EPYC",
    "hardware.cores": "16",
    "hardware.gpus": "NVIDIA H200, NVIDIA H200",
    "serving.model": "Qwen/Qwen3-8B",
    "serving.dtype": "auto",
    "workload.users": "3",
    "workload.qps": "2",
}
COMMANDS = {
    "vllm-0": ["/e/bin/vllm", "serve", "Qwen/Qwen3-8B", "--port", "8001", "--tensor-parallel-size=1", "--no-log"],
    "vllm-1": ["/e/bin/vllm", "serve", "Qwen/Qwen3-8B", "--port", "8002", "--tensor-parallel-size=1", "--no-log"],
    "lmcache": ["/e/bin/lmcache", "server", "--chunk-size", "256"],
    "router": ["/e/bin/vllm-router", "--policy", "round_robin"],
    "load": ["python", "-m", "x"],
}
WORKLOAD = {
    "kind": "multi-round-qa", "users": 3, "rounds": 4, "qps": 2.0, "shared_prompt_tokens": 1000, "answer_tokens": 4,
}  # fmt: skip


def rows(ttft_s: float = 0.25, count: int = 12) -> list[RequestRecord]:
    """Return finished requests of three users, one that failed, one that was never sent, and a yardstick."""
    found = []
    for at in range(count):
        start = at * 0.5
        first = start + ttft_s * (1 + at / 100)
        times = [first + step * 0.02 for step in range(4)]
        found.append(
            RequestRecord(
                at % 3,
                at // 3 + 1,
                start,
                start,
                start,
                first,
                times[-1],
                1000 + at,
                4,
                1000 + at,
                4,
                900,
                "ok",
                server=f"vllm-{at % 2}",
                token_times_s=times,
            )
        )
    failed = RequestRecord(1, 9, 7.0, 7.0, 7.0, status="http-error", error='503: "busy"\nagain')
    cold = RequestRecord(-1, 1, 1.0, 1.0, 1.0, 4.0, 5.0, 1000, 4, 1000, 4, 0, "ok", token_times_s=[4.0, 5.0])
    return [*found, failed, RequestRecord(2, 9, 8.0), cold]


def left(
    run: Path,
    tier: str = "pnfs",
    context: int = 9000,
    *,
    boot: str = "boot-1",
    requests: Sequence[RequestRecord] | None = None,
    **more: Any,
) -> Path:
    """Write what a boot of a tier leaves at a context length; return the folder of the load.

    Args:
        run: Folder of the session.
        tier: Name of the tier.
        context: Length of the user context.
        boot: Name of the boot's folder.
        requests: Those of `rows` where not given.
        more: Keys of run.json in place of what stands here.
    """
    requests = rows() if requests is None else requests
    folder = run / tier / boot / f"context-{context}"
    folder.mkdir(parents=True)
    records.save(requests, folder / "requests.parquet")
    facts = {
        "label": tier,
        "comparability": {**KEYS, "workload.context_tokens": str(context)},
        "versions": {"vllm": "0.32.0", "lmcache": "0.5.6", "python": "3.11.2"},
        "settings": {"model": "Qwen/Qwen3-8B", "context_tokens": context, "workload": WORKLOAD},
        "commands": COMMANDS,
        "load": {"started_at": STARTED_AT, "elapsed_s": 8.5, "workers": 1},
        "estimates": {k: v for k, v in estimate(to_frame(requests), duration_s=8).items() if math.isfinite(v)},
        "faults": [],
    } | more
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder
