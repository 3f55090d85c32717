"""A Docker daemon whose containers are processes of this machine: a stub of no more than the SDK's client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors


@dataclass
class StubContainer:
    """What the SDK calls a container.

    Args:
        daemon: That has it.
        asked: The arguments of `containers.create`.
    """

    daemon: StubDocker
    asked: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    attrs: dict[str, Any] = field(default_factory=lambda: {"State": {"Pid": 0}})

    @property
    def id(self) -> str:
        """Its name will do."""
        return str(self.asked["name"])

    def start(self) -> None:
        """Start its program; a daemon without GPUs refuses one that asks for them, in Docker's words."""
        if self.asked["device_requests"]:
            said = 'could not select device driver "" with capabilities: [[gpu]]'
            raise docker.errors.APIError("500 Server Error", explanation=said)
        self.process = subprocess.Popen(
            [*self.asked["entrypoint"], *self.asked["command"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.asked["working_dir"],
            env={**self.daemon.env, **self.asked["environment"]},
            start_new_session=True,
        )

    def reload(self) -> None:
        """Learn the number of its process."""
        assert self.process is not None
        self.attrs = {"State": {"Pid": self.process.pid}}

    def attach(self, *, stream: bool, demux: bool) -> Iterator[tuple[bytes | None, bytes | None]]:
        """Yield all of its output once it has ended."""
        assert stream
        assert demux
        assert self.process is None, "attach before the start, or output is missed"
        return self._output()

    def _output(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        assert self.process is not None
        out, errors = self.process.communicate()
        yield out, None
        yield None, errors

    def wait(self, timeout: float) -> dict[str, int]:
        """Return its exit code as Docker gives it."""
        assert self.process is not None
        code = self.process.wait(timeout)
        return {"StatusCode": code if code >= 0 else 128 - code}

    def kill(self) -> None:
        """End all of its processes."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def remove(self, *, force: bool, v: bool) -> None:
        """End it and forget it."""
        assert force
        assert v
        self.kill()
        if self.process is not None:
            self.process.wait()
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        self.daemon.all.remove(self)


@dataclass
class StubDocker:
    """The SDK's client and all its collections in one.

    Args:
        names: Id of each image that is here, by name.
        env: Of every image: its PATH.
        created: Gets the arguments of every container.
        described: What `info` says of the daemon.
        components: What `version` says of it.
        digests: `RepoDigests` of each image, by id.
        registry: Id of each image that can be pulled, by name.
        pulled: Gets the name of each image that was pulled.
    """

    names: Mapping[str, str]
    env: Mapping[str, str]
    created: list[dict[str, Any]] = field(default_factory=list)
    all: list[StubContainer] = field(default_factory=list)
    described: Mapping[str, Any] = field(default_factory=lambda: {"ServerVersion": "20.10.24", "OSType": "linux"})
    components: Sequence[Mapping[str, Any]] = ({"Name": "Engine", "Version": "20.10.24"},)
    digests: Mapping[str, list[str]] = field(default_factory=dict)
    registry: Mapping[str, str] = field(default_factory=dict)
    pulled: list[str] = field(default_factory=list)

    def __call__(self, base_url: str, *, tls: Any) -> StubDocker:
        """Stand for the class of the client as well as for the client."""
        assert base_url.startswith("unix://")
        assert not tls
        return self

    def info(self) -> Mapping[str, Any]:
        """Say what it is."""
        return self.described

    def version(self) -> dict[str, Any]:
        """Say what it is made of."""
        return {"Components": self.components}

    @property
    def api(self) -> StubDocker:
        """The part of the SDK that is nearer to HTTP."""
        return self

    def pull(self, name: str, *, tag: str, stream: bool, decode: bool) -> Iterator[dict[str, Any]]:
        """Fetch an image, in events as Docker 20 sends them."""
        assert stream
        assert decode
        full = f"{name}{'@' if tag.startswith('sha256:') else ':'}{tag}"
        if full not in self.registry:
            yield {"error": f"manifest for {full} not found: manifest unknown: manifest unknown"}
            return
        yield {"status": f"Pulling from {name}", "id": tag}
        yield {"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": "a3ed95caeb02"}
        yield {"status": "Pull complete", "progressDetail": {}, "id": "a3ed95caeb02"}
        yield {"status": f"Status: Downloaded newer image for {full}"}
        self.pulled.append(full)
        self.names = {**self.names, full: self.registry[full]}

    @property
    def images(self) -> StubImages:
        """All images."""
        return StubImages(self.names, self.digests)

    @property
    def containers(self) -> StubDocker:
        """All containers."""
        return self

    def create(self, *, auto_remove: bool = False, **asked: Any) -> StubContainer:
        """Make a container."""
        self.created.append(asked)
        container = StubContainer(self, asked)
        if not auto_remove:
            self.all.append(container)
        return container

    def get(self, container_id: str) -> StubContainer:
        """Return a container."""
        return next(each for each in self.all if each.id == container_id)

    def list(self, *, all: bool, filters: Mapping[str, str], ignore_removed: bool) -> list[StubContainer]:
        """Return the containers with a label."""
        assert all
        assert ignore_removed
        key, _, value = filters["label"].partition("=")
        return [each for each in self.all if each.asked["labels"].get(key) == value]

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class StubImages:
    """All images of the daemon."""

    names: Mapping[str, str]
    digests: Mapping[str, list[str]]

    def get(self, name: str) -> StubImage:
        """Return an image."""
        if name not in self.names:
            raise docker.errors.ImageNotFound("404", explanation=f"No such image: {name}")
        found = self.names[name]
        return StubImage(found, {"RepoDigests": self.digests.get(found, [])})


@dataclass(frozen=True)
class StubImage:
    """An image.

    Args:
        id: Its digest.
        attrs: What inspecting it returns.
    """

    id: str
    attrs: Mapping[str, Any]


def image_path(folder: Path, engine: Path, *, vllm: str = "0.stub") -> str:
    """Return the PATH of an image whose Python has a vLLM, and whose programs are those of a stub engine."""
    packages = folder / "packages" / f"vllm-{vllm}.dist-info"
    packages.mkdir(parents=True)
    (packages / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm}\n")
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages.parent} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return f"{folder}:{engine / 'bin'}:/usr/bin:/bin"
