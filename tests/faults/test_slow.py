"""Storage that works and is slow: no fault of the run, and no pass either."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.power.overlay import make
from tests.faults.sessions import prepare, run
from tests.projects import NOTHING, Project

pytestmark = pytest.mark.engine

#: With one look, six boots that spread by 20 % tell a change by three times.
RULES = """
[profiles.faults.rules]
canary = false
other_work = 9
looks = 1
"""
#: A user's context is 15 MB of KV: two seconds instead of a tenth of one.
BANDWIDTH = "8M"


def test_a_slow_bucket(project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path) -> None:
    """Against a baseline of the same storage, a slow one is regressed or undecided, with TTFT before and now."""
    prepare(project, real_engine, rules=RULES)
    for _ in range(3):
        recorded = run(project, kvcache_home, "--tier", "s3", "--record-baselines", "--kv-boots", "2", boots=2)
        assert recorded.code == 0, recorded.output
    slow = make(tmp_path / "engine", real_engine, bwlimit=BANDWIDTH)
    ended = run(project, kvcache_home, "--tier", "s3", "--kv-strict", f"--kv-engine={slow}")
    print(ended.output)
    assert ended.code == 1
    assert ended.verdicts["ttft"] in {"regressed", "inconclusive"}
    assert "invalid" not in ended.verdicts.values()
    assert re.search(r"TTFT \(s\): \d+\.\d+ -> \d+\.\d+, worse by \+\d+", ended.output)
    assert "Traceback" not in ended.output
    assert ended.left == NOTHING
    assert (ended.rows("s3")["status"] == "ok").any()
