"""Storage that refuses, is full, loses its keys, or was not empty."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvcache.runs.journal import clean_up_after_the_dead
from tests.faults.programs import AGAIN, shim
from tests.faults.sessions import (
    BESIDE,
    INSIDE,
    Ended,
    assert_invalid,
    assert_no_secret,
    assert_refused,
    component,
    prepare,
    run,
)
from tests.faults.test_ended import keys_of
from tests.projects import NOTHING, Project, Session, traces

pytestmark = pytest.mark.engine

ON_MOUNT = """
[tiers.pnfs]
path = "{path}"
require = "{require}"
"""


def mount(*argv: str) -> None:
    """Mount a file system, or mount it anew."""
    subprocess.run(["mount", *argv], check=True, capture_output=True, text=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, larger than what a session writes."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=512m", "kvcache-faults", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount: {getattr(error, 'stderr', error)}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


#: Of revoked keys, by mode: what the fault says, and what the log has.
REVOKED = {
    # Whichever of the two a server of LMCache came to last.
    BESIDE: ("chunks to the shared storage and", r"RuntimeError: S3 (PUT|GET) failed for "),
    # Counted as stored: the log knows that they were not.
    INSIDE: (
        "log: ",
        r"AWS_ERROR_S3_INVALID_RESPONSE_STATUS.*403|Failed to upload .* to S3: AWS_ERROR_S3_INVALID_RESP",
    ),
}


@pytest.mark.parametrize("mode", REVOKED)
def test_revoked_keys(project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path, mode: str) -> None:
    """An S3 server that no longer takes the keys: stores fail, and the run is invalid with the cause."""
    prepare(project, shim(tmp_path / "engine", real_engine, "rclone", "loses-its-keys"), mode=mode)
    keys: list[str] = []

    def breaks(session: Session) -> None:
        server = component(session, "s3")[0]
        keys.extend(keys_of(server))
        server.send_signal(AGAIN)

    ended = run(project, kvcache_home, "--tier", "s3", breaks=breaks)
    print(ended.output)
    print(ended.logs("s3")[-6000:])
    says, logged = REVOKED[mode]
    assert_invalid(ended, says, "check that the keys are still valid")
    assert re.search(logged, ended.output), ended.output
    assert not ended.rows("s3").empty
    assert_no_secret(ended, keys)


def test_a_wrong_bucket(project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path) -> None:
    """LMCache told of a bucket that is not there: not one chunk is stored, and the run is invalid with the cause."""
    prepare(project, shim(tmp_path / "engine", real_engine, "lmcache", "wrong-bucket"))
    keys: list[str] = []
    ended = run(
        project, kvcache_home, "--tier", "s3", breaks=lambda session: keys.extend(keys_of(component(session, "s3")[0]))
    )
    print(ended.output)
    print(ended.logs("s3")[-6000:])
    assert_invalid(ended, "none was stored: its log says why", "S3 PUT failed", "and that the bucket is there")
    assert not ended.rows("s3").empty
    assert_no_secret(ended, keys)


def test_a_read_only_folder(project: Project, kvcache_home: Path, real_engine: Path, small: Path) -> None:
    """A folder that is read-only from the start fails the preflight, before anything boots."""
    mount("-o", "remount,ro", str(small))
    prepare(project, real_engine, ON_MOUNT.format(path=small, require="none"))
    ended = run(project, kvcache_home, "--tier", "pnfs")
    print(ended.output)
    assert_refused(ended, "its storage fails the preflight: writable: cannot be written", "Read-only file system")
    assert ended.folder is None  # nothing booted


@pytest.mark.parametrize("mode", [BESIDE, INSIDE])
def test_a_folder_that_becomes_read_only(
    project: Project, kvcache_home: Path, real_engine: Path, small: Path, mode: str
) -> None:
    """A file system that goes read-only under load: stores fail, and the run is invalid with the cause."""
    prepare(project, real_engine, ON_MOUNT.format(path=small, require="none"), mode=mode)

    def breaks(_session: Session) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until:  # busy for as long as a file is open for writing
            try:
                return mount("-o", "remount,ro", str(small))
            except subprocess.CalledProcessError:
                time.sleep(0.01)
        pytest.fail("the file system was busy all the time")

    ended = run(project, kvcache_home, "--tier", "pnfs", breaks=breaks)
    print(ended.output)
    print(ended.logs("pnfs")[-6000:])
    assert_invalid(ended, "stored: its log says why", "Read-only file system", keeps_journal=True)
    assert not ended.rows("pnfs").empty
    # What cannot be removed is said, and the next run removes it.
    (left,) = small.iterdir()
    assert f"could not remove {left}: is its file system read-only? The next run tries again" in ended.output
    mount("-o", "remount,rw", str(small))
    clean_up_after_the_dead(kvcache_home / "journal", print)
    assert list(small.iterdir()) == []
    assert traces(project.path, kvcache_home) == NOTHING


def test_a_full_folder(project: Project, kvcache_home: Path, real_engine: Path, small: Path) -> None:
    """A file system with less room than a boot writes fails the preflight, before anything boots."""
    (small / "ballast").write_bytes(bytes(500 << 20))
    prepare(project, real_engine, ON_MOUNT.format(path=small, require="none"))
    ended = run(project, kvcache_home, "--tier", "pnfs")
    print(ended.output)
    assert_refused(ended, "its storage fails the preflight: space: 0.0 GiB free", "free some, shorten the workload")
    assert ended.folder is None  # nothing booted


@pytest.mark.parametrize("mode", [BESIDE, INSIDE])
def test_a_folder_that_fills_up(
    project: Project, kvcache_home: Path, real_engine: Path, small: Path, mode: str
) -> None:
    """A file system that is filled by somebody else under load: stores fail, and the run is invalid with the cause."""
    prepare(project, real_engine, ON_MOUNT.format(path=small, require="none"), mode=mode)

    def breaks(_session: Session) -> None:
        with (small / "ballast").open("wb", buffering=0) as out, contextlib.suppress(OSError):
            while True:
                out.write(bytes(1 << 20))

    ended = run(project, kvcache_home, "--tier", "pnfs", breaks=breaks)
    print(ended.output)
    print(ended.logs("pnfs")[-6000:])
    assert_invalid(ended, "were not stored", "No space left on device")
    assert not ended.rows("pnfs").empty
    assert [path.name for path in small.iterdir()] == ["ballast"]


def test_a_folder_on_something_else(project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path) -> None:
    """A local folder where pNFS over RDMA is required is refused with what it is on and what to do."""
    (tmp_path / "kv").mkdir()
    prepare(project, real_engine, ON_MOUNT.format(path=tmp_path / "kv", require="pnfs-rdma"))
    ended = run(project, kvcache_home, "--tier", "pnfs")
    print(ended.output)
    assert_refused(ended, 'is not on what require = "pnfs-rdma" asks for', "nothing of NFS is mounted there")
    assert ended.folder is None  # nothing booted


def cached_share(ended: Ended, tier: str) -> float:
    """Return how much of all prompts was not computed."""
    rows = ended.rows(tier)
    return float(rows["cached_tokens"].sum() / rows["prompt_tokens"].sum())


def test_leftovers_of_an_earlier_run(project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path) -> None:
    """Where the storage still has what another run stored, the run is invalid and becomes no baseline."""
    kept = tmp_path / "kept"
    prepare(project, real_engine)
    args = ("--tier", "pnfs", "--record-baselines", "--kv-allow-suspect", "--kv-boots", "1")

    def keep(_session: Session) -> None:
        (folder,) = (kvcache_home / "storage").iterdir()
        shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("*.tmp", ".tmp-*"))

    first = run(project, kvcache_home, *args, breaks=keep)
    assert first.code == 0, first.output
    (cell,) = (project.path / "baselines").rglob("*.json")
    before = cell.read_bytes()
    again = run(
        project,
        kvcache_home,
        *args,
        f"--kv-engine={shim(tmp_path / 'engine', real_engine, 'lmcache', f'leftovers:{kept}')}",
    )
    print(again.output)
    assert_invalid(
        again,
        "after 1 boot: invalid: warm start: ",
        "files are in the storage before the first request",
        "warm start: vllm-0 had",
        "empty it, or give the tier one of its own",
    )
    assert cached_share(again, "pnfs") > cached_share(first, "pnfs")
    assert cell.read_bytes() == before


def test_leftovers_in_storage_of_the_users_own(
    project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path
) -> None:
    """A session on a storage that keeps everything is as cold as the one before, or invalid: never merely fast."""
    kept = tmp_path / "kept"
    tier = f'[tiers.kept]\nkind = "lmcache-l2"\n[tiers.kept.adapter]\ntype = "fs"\nbase_path = "{kept}"\n'
    prepare(project, real_engine, tier)
    args = ("--tier", "kept", "--record-baselines", "--kv-allow-suspect", "--kv-boots", "1")
    first = run(project, kvcache_home, *args)
    assert first.code == 0, first.output
    assert any(kept.iterdir())
    again = run(project, kvcache_home, *args)
    print(again.output)
    if again.code == 0:
        assert cached_share(again, "kept") == pytest.approx(cached_share(first, "kept"), abs=0.03)
    else:
        assert_invalid(again, "the storage held what an earlier run left")
