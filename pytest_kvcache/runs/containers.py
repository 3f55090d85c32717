"""The Docker daemon, and the containers of a run, which are found by nothing but their label with the run's id."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ConfigError

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "pytest-kvcache.run"
_SOCKET = "unix:///var/run/docker.sock"
_TODO = "is dockerd running, and may this user talk to it (group docker)? DOCKER_HOST names its socket"


def address() -> str:
    """Return the address of the daemon: DOCKER_HOST, else its usual socket.

    Raises:
        ConfigError: DOCKER_HOST is no Unix socket, so that the daemon may be another machine's.
    """
    host = os.environ.get("DOCKER_HOST") or _SOCKET
    if not host.startswith("unix://"):
        raise ConfigError(
            f"{host} is not allowed; allowed: unix://SOCKET",
            where="DOCKER_HOST",
            todo="containers of a run share this machine's loopback and folders: use a daemon of this machine",
        )
    return host


@contextlib.contextmanager
def daemon(host: str) -> Iterator[DockerClient]:
    """Yield a client of the daemon at `host`.

    Raises:
        ConfigError: The daemon does not answer, or answers with an error while the client is used.
    """
    _reach(host)
    import docker  # noqa: PLC0415 - heavy, and only where an image is used
    import requests  # noqa: PLC0415

    client = None
    try:
        client = docker.DockerClient(base_url=host)
        yield client
    except (docker.errors.DockerException, requests.RequestException) as error:
        said = getattr(error, "explanation", None) or error
        raise ConfigError(f"docker: {' '.join(str(said).split())}", where=host) from None
    finally:
        if client is not None:
            client.close()


def _reach(host: str) -> None:
    """Connect once, to report a failure in the system's plain words; the SDK nests exceptions and leaks a socket."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(host.removeprefix("unix://"))
    except OSError as error:
        raise ConfigError(f"docker: the daemon does not answer: {error.strerror}", where=host, todo=_TODO) from None


def remove(run_id: str, host: str) -> int:
    """Remove all containers of a run, whatever they do, with what they wrote into their own layers.

    Returns:
        The number of containers that there were.

    Raises:
        ConfigError: The daemon does not answer.
    """
    with daemon(host) as client:
        found = client.containers.list(all=True, filters={"label": f"{LABEL}={run_id}"}, ignore_removed=True)
        for container in found:
            _remove(container)
        return len(found)


def _remove(container: Any) -> None:
    import docker  # noqa: PLC0415

    with contextlib.suppress(docker.errors.NotFound):
        container.remove(force=True, v=True)
