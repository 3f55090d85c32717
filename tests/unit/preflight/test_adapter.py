"""What `lmcache bench l2` printed (LMCache 0.5.6), read by the preflight."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError

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


def run_bench(tmp_path: Path, store: Store, program: str) -> Finding:
    """Bench a bucket of the user's with an interpreter that runs `program`, which writes the objects it names."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\n{program}")
    python.chmod(0o755)
    session = RunSession(tmp_path / "home", tmp_path / "runs", print)
    try:
        plan = TierPlan("s3", bucket=Bucket("http://h", "kv", "r", {}))
        return adapter.bench_plan(plan, {"type": "s3"}, str(python), session)
    finally:
        session.close()
        assert not any((tmp_path / "home" / "journal").iterdir())


THEIRS = ["bench-model-results.csv", "bench-model@1@0@aa", "bench-models/x", "pytest-kvcache-bench", "Qwen/x@1", "a"]


@pytest.mark.parametrize("ending", ["sys.exit(1)", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_bench_removes_what_it_wrote_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """In a user's bucket objects of others stay, whatever their names begin with and however the bench ends."""
    store = Store(*THEIRS)
    monkeypatch.setattr(buckets, "client", lambda _: store)
    real = adapter.bench

    def bench(*args: Any, model: str) -> Finding:
        store.names += [f"{model}@0@0@aa", f"{model}@1@0@bb"]
        found = real(*args, model=model)
        if "Keyboard" in ending:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(adapter, "bench", bench)
    try:
        assert run_bench(tmp_path, store, f"print('error: x'); {ending}").status == "fail"
    except KeyboardInterrupt:
        assert "Keyboard" in ending
    assert store.names == THEIRS


def test_benches_side_by_side_touch_nothing_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bench has a name of its own: one that ends leaves the objects of one that is still at work."""
    store, names = Store(), []
    monkeypatch.setattr(buckets, "client", lambda _: store)

    def bench(*_: object, model: str) -> Finding:
        names.append(model)
        store.names.append(f"{model}@0@0@aa")
        if len(names) == 1:
            run_bench(tmp_path / "2", store, "")
            assert store.names == [f"{names[0]}@0@0@aa"]
        return Finding("pass", "as it went")

    monkeypatch.setattr(adapter, "bench", bench)
    (tmp_path / "2").mkdir()
    assert run_bench(tmp_path, store, "").status == "pass"
    assert len(set(names)) == 2
    assert store.names == []


def test_what_a_bench_could_not_remove_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that cannot be listed or cleared leaves a warning with what the names begin with."""
    store = Store()
    monkeypatch.setattr(buckets, "client", lambda _: store)
    monkeypatch.setattr(store, "delete_object", lambda **_: (_ for _ in ()).throw(BotoCoreError()))

    def bench(*_: object, model: str) -> Finding:
        store.names.append(f"{model}@0@0@aa")
        return Finding("pass", "as it went")

    monkeypatch.setattr(adapter, "bench", bench)
    found = run_bench(tmp_path, store, "")
    assert found.status == "warn"
    assert "as it went; objects of this run, their names begin with pytest-kvcache-bench-" in found.found


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("num_keys, model_name='bench-model', key_offset=0", "named own"),
        ("num_keys, *, key_offset=0", "error: this LMCache gives"),
        ("num_keys, model_name='bench', key_offset=0", "error: this LMCache gives"),
    ],
)
def test_objects_of_a_bench_get_its_own_name(tmp_path: Path, signature: str, said: str) -> None:
    """LMCache's own program is told the name; where it names objects in another way, nothing is written."""
    for package in ("lmcache", "lmcache/cli", "lmcache/cli/commands", "lmcache/cli/commands/bench"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    here = tmp_path / "lmcache" / "cli" / "commands" / "bench" / "l2_adapter_bench"
    here.mkdir()
    (here / "__init__.py").touch()
    (here / "data.py").write_text(f"def make_object_keys({signature}): return [model_name]\n")
    (here / "command.py").write_text(
        "def run():\n    from .data import make_object_keys\n    return make_object_keys(1)\n"
    )
    (tmp_path / "lmcache" / "cli" / "main.py").write_text(
        "import sys\nfrom .commands.bench.l2_adapter_bench import command\n"
        "def main():\n    assert sys.argv[1:3] == ['bench', 'l2']\n    print('error: named', *command.run())\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    assert said in adapter.bench(sys.executable, {"type": "fs"}, env, model="own").found
