"""What folders and buckets say of themselves, and what they do where they cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.errors import RunError
from pytest_kvcache.load import settling
from pytest_kvcache.load import snapshot as looks
from pytest_kvcache.storage.account import StorageReading
from pytest_kvcache.storage.bucket import Bucket
from pytest_kvcache.storage.folder import FolderAccount
from pytest_kvcache.storage.mounts import Mount
from pytest_kvcache.storage.objects import BucketAccount, OwnServerAccount
from tests.unit.storage.test_mountstats import reading


def fill(folder: Path) -> None:
    """Make three files of 300 bytes, one of them in a folder of its own."""
    (folder / "a").mkdir(parents=True)
    for name in ("one.data", "two.data", "a/three.data"):
        (folder / name).write_bytes(b"x" * 100)


def test_a_local_folder_is_listed(tmp_path: Path) -> None:
    """All files below the folder are counted; of a local disk there are no mount counters, which its name says."""
    fill(tmp_path)
    storage_account = FolderAccount(tmp_path)
    assert storage_account.read() == StorageReading(files=3, bytes=300)
    assert storage_account.name.startswith("folder listing; no mount counters: ")


def test_what_is_no_object_yet_is_not_counted(tmp_path: Path) -> None:
    """What a server still writes, or left of a store that failed, in its temporary folder is no object."""
    fill(tmp_path)
    (tmp_path / ".tmp-0").mkdir()
    (tmp_path / ".tmp-0" / "one.data").write_bytes(b"x")
    assert FolderAccount(tmp_path).read() == StorageReading(files=3, bytes=300)


def test_a_folder_on_nfs_brings_the_mounts_counters(tmp_path: Path) -> None:
    """Beside the listing stand the counters of the mount that holds the folder."""
    nfs = reading("pnfs-flexfiles-rdma.after")
    mount = Mount(nfs.point, nfs.fstype, nfs.source, dict(nfs.options), nfs)
    fill(tmp_path)
    storage_account = FolderAccount(tmp_path, "pnfs-rdma", mount=lambda _: mount)
    said = storage_account.read()
    assert said.mount is not None
    assert (said.files, said.mount.reading) == (3, nfs)
    assert storage_account.name == "folder listing and mount counters: nfs v4.2 over rdma, LAYOUT_FLEX_FILES"


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """A folder that cannot be listed is an error that names it, not an empty account."""
    with pytest.raises(RunError, match="gone: cannot be listed: No such file"):
        FolderAccount(tmp_path / "gone").read()


@contextmanager
def answering(text: str) -> Iterator[str]:
    """Serve `text` to every request and give the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()


def test_an_s3_server_of_our_own_says_what_it_moved(tmp_path: Path) -> None:
    """The bucket's folder is listed, and the server's counter of bytes is read."""
    fill(tmp_path)
    with answering("rclone_speed 0\nrclone_bytes_transferred_total 6.291456e+08\n") as url:
        assert OwnServerAccount(tmp_path, url).read() == StorageReading(3, 300, served_bytes=629145600)


def test_a_server_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    """Without the counter, or without an answer, there is no account."""
    with answering("rclone_speed 0\n") as url:
        with pytest.raises(RunError, match="does not count rclone_bytes_transferred_total"):
            OwnServerAccount(tmp_path, url).read()
        closed = url.replace("/metrics", "")
    with pytest.raises(RunError, match="its counters cannot be read"):
        OwnServerAccount(tmp_path, closed).read()


def test_a_bucket_of_the_users_is_listed_by_the_boots_own_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only objects with the boot's salt count, over all pages of the listing."""

    class Pages:
        def get_paginator(self, _: str) -> Pages:
            return self

        def paginate(self, **asked: str) -> list[dict[str, Any]]:
            assert asked == {"Bucket": "kv", "Prefix": "Qwen"}
            objects = [{"Key": f"Qwen/x@{n}@{salt}", "Size": 10} for n, salt in ((1, "s1"), (2, "s2"), (3, "s1"))]
            return [{"Contents": objects}, {}, {"Contents": [{"Key": "Qwen/x@4@s1", "Size": 5}]}]

    monkeypatch.setattr("pytest_kvcache.storage.bucket.client", lambda _: Pages())
    assert BucketAccount(Bucket("http://h", "kv", "r", {}), "Qwen", "s1").read() == StorageReading(3, 25)


def counters(submitted: float, completed: float, queue: float = 0) -> dict[str, dict[str, float]]:
    """Return the counters of an LMCache with so many stores."""
    return {
        "lmcache-0": {
            "lmcache_mp_l2_store_submitted_requests_total": submitted,
            "lmcache_mp_l2_store_completed_requests_total": completed,
            "lmcache_mp_event_bus_queue_depth": queue,
        }
    }


def test_a_look_waits_for_stores_and_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage is asked once no store and no event is under way, with counters before and after it."""
    said = iter([counters(2, 1), counters(2, 2, queue=1), counters(2, 2), counters(3, 3)])
    for module in (looks, settling):
        monkeypatch.setattr(module, "scrape_all", lambda _: next(said))
    monkeypatch.setattr("time.sleep", lambda _: None)
    found = looks.take_snapshot(FolderAccount(tmp_path), {})
    assert (found.first, found.last) == (counters(2, 2), counters(3, 3))
    assert (found.account, found.under_way, found.unread) == (StorageReading(0, 0), 0, "")


def test_a_look_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not end is said, and a storage that does not answer too."""
    for module in (looks, settling):
        monkeypatch.setattr(module, "scrape_all", lambda _: counters(2, 1))
    monkeypatch.setattr(settling, "_NEXT_S", 0.0)
    found = looks.take_snapshot(FolderAccount(tmp_path / "gone"), {})
    assert (found.account, found.under_way) == (None, 1)
    assert "cannot be listed" in found.unread
