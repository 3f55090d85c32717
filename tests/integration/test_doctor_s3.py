"""The doctor's S3 checks against a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.preflight import s3
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.objectstore import rclone_server
from pytest_kvcache.storage.bucket import Bucket

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "SECRET"}


@pytest.fixture
def bucket(real_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of a real server, reached by its own host name as LMCache would."""
    port, metrics_port = free_ports(2)
    (tmp_path / "kv-cache").mkdir()
    rclone = str(real_engine / "bin" / "rclone")
    server = rclone_server(rclone, folder=tmp_path, port=port, metrics_port=metrics_port, keys=KEYS)
    ask = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        # What a DNS entry for *.localhost would do.
        return ask("127.0.0.1" if host == "kv-cache.localhost" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(server.argv, env={**os.environ, **server.secret_env}, stdout=log, stderr=log)
    try:
        found = Bucket(f"http://localhost:{port}", "kv-cache", "us-east-1", KEYS)
        until = time.monotonic() + 60
        while s3.answers(found).status != "pass" and time.monotonic() < until:
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(60)


def test_a_real_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """An object is put, got, listed and deleted with signed requests, and wrong keys are refused with the reason."""
    assert s3.answers(bucket).status == "pass"
    found = s3.objects(bucket)
    assert found.status == "pass", found
    assert list((tmp_path / "kv-cache").iterdir()) == []
    refused = s3.objects(replace(bucket, keys={**KEYS, "AWS_SECRET_ACCESS_KEY": "OTHER"}))
    assert (refused.status, refused.found.startswith("put was refused")) == ("fail", True)
    assert "are not those of" in refused.todo
