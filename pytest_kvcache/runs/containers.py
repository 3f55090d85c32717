"""The Docker daemon, and the containers of a run, which are found by nothing but their label with the run's id."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs.daemon_address import DaemonAddress, address_of

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "pytest-kvcache.run"
#: The least version that every daemon of today speaks; the daemon itself says which one is spoken with it.
_ANY_API = "1.41"
_TIMEOUT_S, _CONNECT_S = 60.0, 15.0
_TODO = "is dockerd running, and may this user talk to it (group docker)? DOCKER_HOST or `docker context use` names it"


def address() -> str:
    """Return the address of the daemon that the `docker` command would talk to, as `daemon` takes it.

    Raises:
        ConfigError: DOCKER_HOST or the docker context cannot be used.
    """
    return str(address_of(os.environ))


@contextlib.contextmanager
def daemon(host: str) -> Iterator[DockerClient]:
    """Yield a client of the daemon at `host`.

    Args:
        host: What `address` returned.

    Raises:
        ConfigError: The daemon does not answer, or answers with an error while the client is used.
    """
    where = DaemonAddress.parse(host)
    _reach(where)
    import docker  # noqa: PLC0415 - heavy, and only where an image is used
    import requests  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        told: list[Callable[[], str]] = []
        try:
            yield _client(where, stack, told)
        except (docker.errors.DockerException, requests.RequestException) as error:
            answered = getattr(error, "explanation", None)
            said = answered or next((line for say in told if (line := say())), "") or _innermost(error)
            todo = "" if answered else _todo(where)
            raise ConfigError(f"docker: {' '.join(str(said).split())}", where=where.url, todo=todo) from None


def _innermost(error: BaseException) -> BaseException:
    """Return the first of the errors that led to another: the SDK and requests each put all before it into theirs."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _client(where: DaemonAddress, stack: contextlib.ExitStack, told: list[Callable[[], str]]) -> DockerClient:
    """Return a client, which is closed with `stack`; `told` gets what says why there is no connection."""
    import docker  # noqa: PLC0415

    def made(**how: Any) -> DockerClient:
        client = docker.DockerClient(**how)
        stack.callback(client.close)
        return client

    if where.scheme == "ssh":
        from pytest_kvcache.runs.daemon_ssh import SshAdapter  # noqa: PLC0415 - only where it is used

        adapter = SshAdapter(where, _TIMEOUT_S)
        stack.callback(adapter.close)
        told.append(adapter.said)
        return _negotiated(
            lambda version: made(base_url="unix:///ssh", version=version),
            lambda client: client.api.mount("http+docker://", adapter),
        )
    if where.certs is not None:
        tls = _tls(where)
        # REQUESTS_CA_BUNDLE of the environment would come over the daemon's own authority.
        return _negotiated(
            lambda version: made(base_url=where.url, tls=tls, version=version),
            lambda client: setattr(client.api, "trust_env", False),
        )
    return made(base_url=where.url, tls=False)


def _negotiated(make: Callable[[str], DockerClient], prepare: Callable[[DockerClient], None]) -> DockerClient:
    """Return a prepared client that speaks the daemon's version: the SDK asks for it before one can be prepared."""
    first = make(_ANY_API)
    prepare(first)
    client = make(first.version(api_version=False)["ApiVersion"])
    prepare(client)
    return client


def _tls(where: DaemonAddress) -> Any:
    """Return the SDK's TLS settings of an address with certificates."""
    import docker  # noqa: PLC0415

    folder = where.certs or Path()
    ca, cert, key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    if cert.exists() != key.exists():
        missing = key if cert.exists() else cert
        raise ConfigError(f"{missing} is not there", where=where.url, todo="DOCKER_CERT_PATH names their folder")
    if where.verify and not ca.exists():
        raise ConfigError(f"{ca} is not there", where=where.url, todo="DOCKER_CERT_PATH names its folder")
    return docker.tls.TLSConfig(
        client_cert=(str(cert), str(key)) if cert.exists() else None,
        ca_cert=str(ca) if ca.exists() else None,
        verify=where.verify,
    )


def _todo(where: DaemonAddress) -> str:
    if where.scheme == "ssh":
        return "`ssh HOST docker version` must work without a question: a key in ssh-agent, the host in known_hosts"
    return "" if where.scheme == "tcp" else _TODO


def _reach(where: DaemonAddress) -> None:
    """Connect once, to report a failure in the system's plain words; the SDK nests exceptions and leaks a socket."""
    try:
        if where.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(where.socket)
        elif where.scheme == "tcp":
            url = urlsplit(where.url)
            socket.create_connection((url.hostname or "", url.port or 0), timeout=_CONNECT_S).close()
    except OSError as error:
        said = error.strerror or str(error)
        raise ConfigError(f"docker: the daemon does not answer: {said}", where=where.url, todo=_TODO) from None


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
