"""A real pair of vLLM and LMCache that another session has booted, attached to, alone and beside a second client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pytest_kvcache.load.worker import CLOCK_STARTS
from tests.projects import Project, Session, configure, run, run_folder

pytestmark = pytest.mark.engine

#: Of a boot beside other work, and of a session on the pair (s).
BOOT_S, PASS_S = 600, 600
HOLD = """
import json, pathlib, time, pytest
pytestmark = pytest.mark.perf

def test_hold(vllm_pair):
    plan = vllm_pair.plan
    said = {"base_url": plan.base_url, "servers": plan.server_urls, "metrics": plan.metrics_urls}
    pathlib.Path("pair.partial").write_text(json.dumps(said))
    pathlib.Path("pair.partial").rename("pair.json")
    while not pathlib.Path("stop").exists():
        time.sleep(0.2)
"""
TOML = """
[profiles.attached]
extends = "cpu-tiny-mp"
[profiles.attached.workload]
context_tokens = [1000]
send_late_budget_s = 2
"""


@pytest.fixture
def pair(project: Project, real_engine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Addresses of a real pair, held by a session of its own."""
    project.makepyprojecttoml(
        f'[tool.pytest.ini_options]\nkv_engine = "{real_engine}"\nkv_profile = "attached"\nmarkers = ["perf: x"]\n'
    )
    project.makepyfile(test_hold=HOLD)
    configure(project, TOML)
    session = Session(project, "--tier", "pnfs", "test_hold.py")
    session.wait_for(lambda: (project.path / "pair.json").exists() or session.process.poll() is not None, BOOT_S)
    assert session.process.poll() is None, session.out.read_text()
    # The sessions that attach are on the same machine by intent.
    monkeypatch.setenv("PYTEST_KVCACHE_MACHINE", f"attached-{session.process.pid}")
    yield json.loads((project.path / "pair.json").read_text())
    (project.path / "stop").touch()
    session.process.wait(60)


def table(pair: dict[str, Any]) -> str:
    """Return the table of kvcache.toml that attaches to a pair."""
    lines = [f'[attach.pnfs]\nbase_url = "{pair["base_url"]}"\ndeployment = "held"']
    for section in ("servers", "metrics"):
        lines += [f"[attach.pnfs.{section}]", *(f'{name} = "{url}"' for name, url in pair[section].items())]
    return "\n".join(lines)


def attached(project: Project, *args: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    """Measure the pair, and return the session and what it keeps of its load."""
    args = ("--kv-launcher", "attach", "--tier", "pnfs", "--kv-boots", "1", *args, "test_multi_round_qa.py")
    result = run(project, *args)
    (path,) = (run_folder(project) / "pnfs").rglob("run.json")
    return result, json.loads(path.read_text())


def second_client(project: Project, url: str, stop: threading.Event) -> None:
    """Send prompts beside the load, from when its clock starts."""
    known = set(project.path.rglob("load.log"))
    while not stop.is_set():
        new = [path for path in (project.path / ".kvcache").rglob("load.log") if path not in known]
        if any(CLOCK_STARTS in path.read_text() for path in new):
            break
        time.sleep(0.1)
    number = 0
    while not stop.is_set():
        number += 1
        body = {"model": "tiny-qwen3", "max_tokens": 4, "messages": [{"role": "user", "content": f"{number} " * 150}]}
        requests.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        stop.wait(1.0)


def test_a_real_pair_alone_and_beside_a_second_client(project: Project, pair: dict[str, Any]) -> None:
    """Alone the ledger is whole and KV comes from the tier; beside a second client the run names the client's share."""
    configure(project, TOML + table(pair))
    result, alone = attached(project, "--record-baselines")
    output = result.stdout.str()
    assert alone["faults"] == [], output
    assert alone["proof"]["other_traffic"] == {"share_of_prompt_tokens": 0.0, "lines": []}
    tokens = alone["proof"]["servers"]
    assert sum(each["l1"] + each["l2"] for each in tokens.values()) > 0
    assert alone["launcher"]["name"] == "attach"
    assert list((project.path / "baselines").rglob("context-1000.json")), output

    stop = threading.Event()
    other = threading.Thread(target=second_client, args=(project, pair["servers"]["vllm-0"], stop))
    other.start()
    try:
        result, beside = attached(project, "--kv-strict")
    finally:
        stop.set()
        other.join()
    lines = beside["proof"]["other_traffic"]["lines"]
    print("\n".join(lines))
    assert "% of the prompt tokens in the window were not this run's" in lines[0]
    assert 0 < beside["proof"]["other_traffic"]["share_of_prompt_tokens"] < 1
    result.stdout.fnmatch_lines(
        ["*is not comparable with its baseline*", "*of the prompt tokens in the window were not this run's*"]
    )
