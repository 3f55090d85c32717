"""Fixtures of tests with a stub of the Docker daemon."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.stubs.docker import StubDocker, image_path


@pytest.fixture
def daemon(
    tmp_path: Path, stub_engine: Path, socket_of_daemon: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StubDocker]:
    """A daemon that has the image `kv:1`, with stub programs."""
    stub = StubDocker({"kv:1": "sha256:1"}, {"PATH": image_path(tmp_path / "image", stub_engine)})
    monkeypatch.setattr(docker, "DockerClient", stub)
    yield stub
    for left in list(stub.all):
        left.remove(force=True, v=True)


@pytest.fixture
def socket_of_daemon(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where DOCKER_HOST leads: something listens there."""
    path = tmp_path_factory.mktemp("d") / "d.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield f"unix://{path}"
