"""The doctor's S3 checks against a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from pytest_kvcache.preflight import s3
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.nodes import tls_relay
from pytest_kvcache.serving.nodes.by_tls import new_certificate
from pytest_kvcache.serving.objectstore import rclone_server
from pytest_kvcache.serving.offload import Reach
from pytest_kvcache.storage.bucket import Bucket

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "SECRET"}


@pytest.fixture(params=["on loopback", "by TLS"])
def bucket(
    request: pytest.FixtureRequest, real_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """A bucket of a real server, reached by its own host name as LMCache would; by TLS, as on other machines."""
    port, metrics_port, door, health = free_ports(4)
    (tmp_path / "kv-cache").mkdir()
    reach, relay = None, None
    if request.param == "by TLS":
        shown = new_certificate(tmp_path, ["127.0.0.1"])
        address, certificate = f"127.0.0.1:{port}", shown.folder / "certificate.pem"
        reach = Reach("kv-3", address, certificate, shown.folder / "key.pem", (f"127.0.0.1:{door}",))
        way = ["--listen", reach.doors[0], "--connect", f"tls://{address}", "--certificate", str(certificate)]
        relay = [sys.executable, "-I", tls_relay.__file__, *way, "--health", f"127.0.0.1:{health}"]
    rclone = str(real_engine / "bin" / "rclone")
    server = rclone_server(rclone, folder=tmp_path, port=port, metrics_port=metrics_port, keys=KEYS, reach=reach)
    ask = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        # What a DNS entry for *.localhost would do.
        return ask("127.0.0.1" if host == "kv-cache.localhost" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with (tmp_path / "log").open("w") as log:
        argvs = [list(server.argv), *([relay] if relay else [])]
        environ = {**os.environ, **server.secret_env}
        processes = [subprocess.Popen(argv, env=environ, stdout=log, stderr=log) for argv in argvs]
    try:
        found = Bucket(f"http://localhost:{door if relay else port}", "kv-cache", "us-east-1", KEYS)
        ready = f"http://127.0.0.1:{health}/" if relay else str(server.ready_url)
        until = time.monotonic() + 60
        while not _answers(ready) and time.monotonic() < until:
            time.sleep(0.05)
        yield found
    finally:
        for process in processes:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code != 503
    except requests.RequestException:
        return False


def test_a_real_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """An object is put, got, listed and deleted with signed requests, and wrong keys are refused with the reason."""
    assert s3.answers(bucket).status == "pass"
    found = s3.objects(bucket)
    assert found.status == "pass", found
    assert list((tmp_path / "kv-cache").iterdir()) == []
    refused = s3.objects(replace(bucket, keys={**KEYS, "AWS_SECRET_ACCESS_KEY": "OTHER"}))
    assert (refused.status, refused.found.startswith("put was refused")) == ("fail", True)
    assert "are not those of" in refused.todo
