"""A real pair: vLLM, LMCache, router and storage, nothing mocked. One boot serves all questions that need a pair."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest

from pytest_kvcache.runs import processes
from tests.projects import NOTHING, Project, Session, configure, ours, run_folder, traces

pytestmark = pytest.mark.engine

#: LMCache inside vLLM, and beside it: a session of the latter starts more processes.
INSIDE, BESIDE = "cpu-tiny", "cpu-tiny-mp"
SHORT = """
[profiles.short]
extends = "{mode}"
{more}
[profiles.short.workload]
context_tokens = [3500]
duration_s = 16
"""


@pytest.fixture
def real_project(project: Project, real_engine: Path) -> Project:
    """A user's project with the real engine and a short workload."""
    project.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        kv_engine = "{real_engine}"
        kv_profile = "short"
        """
    )
    configure(project, SHORT.format(mode=BESIDE, more=""))
    return project


@dataclass(frozen=True)
class Served:
    """What one real session left and showed."""

    output: str
    rows: pd.DataFrame
    facts: dict[str, object]
    listening: set[str]
    left: dict[str, object]
    segments: list[Path]


def shm_of(project: Project) -> list[Path]:
    """Return the shared memory that the project's processes use, with the semaphores that they have mapped.

    Semaphores are read from the processes' maps and not by the plugin's own search, which is what is being tested.
    """
    mapped = set()
    for process in ours(project.path):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
            mapped |= {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/sem.mp-" in line}
    semaphores = [Path(name) for name in sorted(mapped) if not name.endswith("(deleted)")]
    return [*semaphores, *(Path(name) for name in processes.shared_memory(ours(project.path)))]


def serve(project: Project, home: Path, tier: str) -> Served:
    """Run a whole session on `tier`, and look at its sockets while it is under load."""
    session = Session(project, "-v", "--tier", tier, "--record-baselines", "--kv-allow-suspect", "--kv-boots", "1")
    session.wait_for(lambda: bool(list(session.path.rglob("plan.json"))), timeout_s=300)
    pids = {p.pid for p in ours(project.path)}
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    sockets = {c.laddr.ip for c in listening if c.laddr}
    segments = shm_of(project)
    assert session.process.wait(300) == 0, session.out.read_text()
    folder = run_folder(project) / tier / "boot-1" / "context-3500"
    return Served(
        output=session.out.read_text(),
        rows=pd.read_parquet(folder / "requests.parquet"),
        facts=json.loads((folder / "run.json").read_text()),
        listening=sockets,
        left=traces(project.path, home),
        segments=segments,
    )


@pytest.mark.parametrize(
    ("mode", "loaded_counter"),
    [
        pytest.param(BESIDE, "lmcache_mp_lookup_hit_l2_tokens_total", marks=pytest.mark.long),
        (INSIDE, "lmcache:num_hit_tokens_total"),
    ],
)
def test_a_pair_on_s3(real_project: Project, kvcache_home: Path, mode: str, loaded_counter: str) -> None:
    """A real pair on S3 answers every request, loads KV from the bucket, keeps to loopback and leaves nothing.

    What LMCache says that it moved is what the S3 server says.
    """
    configure(real_project, SHORT.format(mode=mode, more=""))
    served = serve(real_project, kvcache_home, "s3")
    rows, load = served.rows, served.facts["load"]
    assert isinstance(load, dict)
    counters = load["counters_after"]
    assert set(rows["status"]) == {"ok"}
    assert set(rows["server"]) == {"vllm-0", "vllm-1"}
    assert (rows["generated_tokens"] == 20).all()
    # Lengths are exact in tokens of the served tokenizer, by the server's own count.
    assert (rows["prompt_tokens"] == 200 + 3500 + 32 + (rows["round"] - 1) * (20 + 32)).all()
    assert rows["residual_s"].notna().all()
    assert "client - server TTFT" in served.output
    # The second round of a user goes to the other server, which can have its context from the bucket only.
    assert (rows["cached_tokens"] > 3000).any()
    loaded = sum(counters[n].get(loaded_counter, 0) for n in ("lmcache-0", "lmcache-1"))
    external = sum(
        counters[n].get('vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}', 0)
        for n in ("vllm-0", "vllm-1")
    )
    assert loaded > 3000
    assert external > 3000
    # The S3 server's own account is LMCache's.
    proof = served.facts["proof"]
    assert isinstance(proof, dict)
    told = proof["storage"]["figures"], proof["storage"]["claimed_bytes"]
    assert told[0]["served_bytes"] == pytest.approx(told[1]["stored"] + told[1]["loaded"], rel=0.02)
    assert 0 < told[1]["least"] <= told[0]["file_bytes"] <= told[1]["most"]
    assert served.listening == {"127.0.0.1"}
    assert served.left == NOTHING
    assert served.segments
    assert not any(segment.exists() for segment in served.segments)
    memory = re.search(r"peak memory ([\d.]+) GB", served.output)
    assert memory is not None
    assert 2 < float(memory.group(1)) < 12


def test_a_cache_that_is_too_small_is_explained(real_project: Project, kvcache_home: Path) -> None:
    """When max_model_len does not fit, the boot ends at once with vLLM's first cause and what to change."""
    configure(real_project, SHORT.format(mode=BESIDE, more="device_blocks = 20"))
    session = Session(real_project, "--tier", "gpu")
    assert session.process.wait(300) == 1
    output = session.out.read_text()
    assert re.search(
        r"vllm-\d\.log: vllm-\d ended while starting \(exit code \d+\): ValueError: To serve at least", output
    )
    assert "max_model_len does not fit in the device cache" in output
    assert traces(real_project.path, kvcache_home) == NOTHING


def test_a_real_boot_that_is_interrupted(real_project: Project, kvcache_home: Path) -> None:
    """Interrupted while vLLM's and LMCache's processes are starting, a session leaves none of them."""
    session = Session(real_project, "--tier", "pnfs")
    session.wait_for(lambda: len(ours(real_project.path)) >= 6, timeout_s=300)
    session.wait_for(lambda: any(p.name.startswith("sem.") for p in shm_of(real_project)), timeout_s=300)
    segments = shm_of(real_project)
    assert session.end(signal.SIGINT) != 0
    assert traces(real_project.path, kvcache_home) == NOTHING
    assert not any(segment.exists() for segment in segments)


def test_a_killed_real_run_is_cleaned_up_after(real_project: Project, kvcache_home: Path) -> None:
    """After kill -9 in the middle of a real boot, the next run ends what is left."""
    session = Session(real_project, "--tier", "cpu")
    session.wait_for(lambda: any(p.name.startswith("sem.") for p in shm_of(real_project)), timeout_s=300)
    segments = shm_of(real_project)
    session.end(signal.SIGKILL)
    left = ours(real_project.path)
    assert len(left) >= 4
    configure(real_project, SHORT.format(mode=BESIDE, more="vllm_args = ['--no-such-argument']"))
    after = Session(real_project, "--tier", "gpu")
    assert after.process.wait(300) == 1
    assert "which was killed" in after.out.read_text()
    assert not any(os.path.exists(f"/proc/{p.pid}") and p.status() != psutil.STATUS_ZOMBIE for p in left)  # noqa: PTH110
    assert traces(real_project.path, kvcache_home) == NOTHING
    assert not any(segment.exists() for segment in segments)
