"""What `lmcache bench l2` printed (LMCache 0.5.6), read by the preflight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.check import Finding
from pytest_kvcache.preflight import adapter
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.storage import bucket as buckets
from pytest_kvcache.storage.bucket import Bucket

DATA = Path(__file__).parents[1] / "data" / "bench"


def test_a_folder_that_works() -> None:
    """Speed and latency of each step are shown, and that what was loaded is what was stored."""
    found = adapter.judge(0, (DATA / "fs.out").read_text(), "")
    assert found.status == "pass"
    assert "16 objects of 512 KiB, verified: store " in found.found
    assert "load " in found.found


def test_a_folder_that_is_full() -> None:
    """Objects that were not stored are counted, for LMCache itself goes on."""
    found = adapter.judge(1, (DATA / "full.out").read_text(), "")
    assert found.status == "fail"
    assert "Store 0 of 32" in found.found


def test_data_that_came_back_changed() -> None:
    """Where every step succeeded and the bytes differ, the storage is not to be trusted."""
    text = (DATA / "fs.out").read_text().replace("All 16 keys data verified OK", "Key 3: MISMATCH")
    found = adapter.judge(1, text, "")
    assert (found.status, found.found) == ("fail", "what was stored is not what was loaded")


@pytest.mark.parametrize("errors", ["PermissionError: [Errno 13] refused\n", ""])
def test_a_program_that_does_not_get_that_far(errors: str) -> None:
    """Without a result the last line that speaks of a failure is shown, or that there was none."""
    found = adapter.judge(1, "[Init] Creating adapter...\n", errors)
    assert found.status == "fail"
    assert found.found == (errors.strip() or "lmcache bench l2 failed")


class Store:
    """A bucket in memory, as botocore's client shows it."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def get_paginator(self, _: str) -> Store:
        """Return what lists it."""
        return self

    def paginate(self, **asked: str) -> list[dict[str, Any]]:
        """Return one page of its objects."""
        return [{"Contents": [{"Key": n, "Size": 1} for n in self.names if n.startswith(asked["Prefix"])]}]

    def delete_object(self, **asked: str) -> None:
        """Remove an object."""
        self.names.remove(asked["Key"])


@pytest.mark.parametrize("status", ["pass", "fail"])
def test_a_bench_removes_what_it_wrote_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Any
) -> None:
    """In a user's bucket objects of others stay, those too whose names begin as the bench's own do."""
    theirs = ["bench-model-results.csv", "bench-model@1@0@their-own", "bench-models/x", "Qwen/x@1", "bench"]
    store = Store(*theirs)
    monkeypatch.setattr(buckets, "client", lambda _: store)

    def bench(*_: object) -> Finding:
        store.names += ["bench-model@1@0@aa", "bench-model@1@0@bb"]
        return Finding(status, "as it went")

    monkeypatch.setattr(adapter, "bench", bench)
    session = RunSession(tmp_path / "home", tmp_path / "runs", print)
    try:
        plan = TierPlan("s3", bucket=Bucket("http://h", "kv", "r", {}))
        assert adapter.bench_plan(plan, {"type": "s3"}, "lmcache", session) == Finding(status, "as it went")
    finally:
        session.close()
    assert store.names == theirs
