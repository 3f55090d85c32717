"""Fixtures of tests with a stub of the Docker daemon."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from tests.stubs.docker import StubDocker, image_path


@pytest.fixture
def daemon(tmp_path: Path, stub_engine: Path, monkeypatch: pytest.MonkeyPatch) -> StubDocker:
    """A daemon that has the image `kv:1`, with stub programs."""
    stub = StubDocker({"kv:1": "sha256:1"}, {"PATH": image_path(tmp_path / "image", stub_engine)})
    monkeypatch.setattr(docker, "DockerClient", stub)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return stub
