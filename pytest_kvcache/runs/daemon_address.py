"""Which Docker daemon is meant: found as the `docker` command finds it, by DOCKER_HOST or by a context."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from pytest_kvcache.errors import ConfigError

_SOCKET = "unix:///var/run/docker.sock"
_PORT, _TLS_PORT = 2375, 2376
_ALLOWED = "allowed: unix://SOCKET, ssh://[USER@]HOST[:PORT][/SOCKET], tcp://HOST[:PORT] with TLS"
_FILES = ("ca.pem", "cert.pem", "key.pem")


@dataclass(frozen=True)
class DaemonAddress:
    """Where a daemon listens, and how it is known to be the right one.

    Args:
        url: `unix://`, `ssh://` or `tcp://`, without any secret.
        certs: Folder with `ca.pem`, `cert.pem` and `key.pem` (those of them that are needed), None without TLS.
        verify: Whether the daemon's certificate must be one of `ca.pem`, or of a public authority where there is none.
    """

    url: str
    certs: Path | None = None
    verify: bool = True

    @property
    def scheme(self) -> str:
        """`unix`, `ssh` or `tcp`."""
        return urlsplit(self.url).scheme

    @property
    def socket(self) -> str:
        """The path of the socket of a `unix://` or `ssh://` daemon, "" for the usual one."""
        return self.url.removeprefix("unix://") if self.scheme == "unix" else urlsplit(self.url).path

    def __str__(self) -> str:
        """Return all of it as one text, for a journal."""
        if self.certs is None:
            return self.url
        return f"{self.url}?certs={quote(str(self.certs))}&verify={int(self.verify)}"

    @classmethod
    def parse(cls, text: str) -> DaemonAddress:
        """Return the address that `str` made a text of."""
        url, _, query = text.partition("?") if text.startswith("tcp://") else (text, "", "")
        asked = parse_qs(query)
        certs = asked.get("certs")
        return cls(url, Path(certs[0]) if certs else None, asked.get("verify", ["1"])[0] == "1")


def address_of(environ: Mapping[str, str]) -> DaemonAddress:
    """Return the daemon that the `docker` command would talk to.

    DOCKER_HOST comes first, with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH; then the context that DOCKER_CONTEXT names, or
    else `currentContext` of the user's `config.json`; then the usual socket.

    Args:
        environ: The caller's environment.

    Raises:
        ConfigError: The address is of no kind that can be used, or the context is not there.
    """
    config = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home()) / ".docker")
    if host := environ.get("DOCKER_HOST"):
        verify = bool(environ.get("DOCKER_TLS_VERIFY"))
        tls = verify or bool(environ.get("DOCKER_TLS"))
        certs = Path(environ.get("DOCKER_CERT_PATH") or config)
        return _checked(host, certs if tls else None, verify=verify, where="DOCKER_HOST")
    name, where = environ.get("DOCKER_CONTEXT") or "", "DOCKER_CONTEXT"
    if not name:
        name, where = _current(config / "config.json"), f"{config / 'config.json'}: currentContext"
    if name in {"", "default"}:
        return DaemonAddress(_SOCKET)
    return _of_context(name, config / "contexts", where)


def _current(path: Path) -> str:
    """Return the context that a configuration of the `docker` command names, "" where it names none."""
    if not path.is_file():
        return ""
    content = _json(path)
    name = content.get("currentContext", "") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise ConfigError("is not the configuration of docker", where=str(path))
    return name


def _of_context(name: str, folder: Path, where: str) -> DaemonAddress:
    # The SDK's own reader finds no context where there is no config.json, and needs all three certificates.
    key = hashlib.sha256(name.encode()).hexdigest()
    path = folder / "meta" / key / "meta.json"
    if not path.is_file():
        raise ConfigError(f"there is no docker context {name!r}", where=where, todo="`docker context ls` lists them")
    content = _json(path)
    try:
        endpoint = content["Endpoints"]["docker"]
        host, skips = str(endpoint["Host"]), bool(endpoint.get("SkipTLSVerify", False))
    except (KeyError, TypeError, AttributeError):
        raise ConfigError("the context has no docker endpoint", where=f"{where}: {name}") from None
    certs = folder / "tls" / key / "docker"
    found = certs if any((certs / each).is_file() for each in _FILES) else None
    return _checked(host, found, verify=not skips, where=f"docker context {name}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error!s:.120}", where=str(path)) from None


def _checked(host: str, certs: Path | None, *, verify: bool, where: str) -> DaemonAddress:
    """Return the address, once it is one that can be used.

    Raises:
        ConfigError: It is of another kind, has a password in it, or would send everything in clear to another machine.
    """
    try:
        url = urlsplit(host)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"is no address ({error}); {_ALLOWED}", where=where) from None
    if url.password is not None:
        raise ConfigError("has a password in it", where=where, todo="use a key: ssh-agent, or ~/.ssh/config")
    if url.scheme not in {"unix", "ssh", "tcp"} or url.query or url.fragment:
        raise ConfigError(f"{host} is not allowed; {_ALLOWED}", where=where)
    if url.scheme == "unix":
        if not host.removeprefix("unix://").startswith("/"):
            raise ConfigError(f"{host} is not allowed: the socket's path is not absolute; {_ALLOWED}", where=where)
        return DaemonAddress(host)
    if not url.hostname or url.hostname.startswith("-") or (url.username or "").startswith("-"):
        raise ConfigError(f"{host} is not allowed: it names no host; {_ALLOWED}", where=where)
    if url.scheme == "ssh":
        return DaemonAddress(host.rstrip("/"))
    if url.path.strip("/") or url.username:
        raise ConfigError(f"{host} is not allowed; {_ALLOWED}", where=where)
    if certs is None and not _is_loopback(url.hostname):
        raise ConfigError(
            f"{host} is not allowed without TLS: whoever sees the traffic has the machine",
            where=where,
            todo="set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH=FOLDER, or use ssh://",
        )
    name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    usual = _PORT if certs is None else _TLS_PORT
    return DaemonAddress(f"tcp://{name}:{port or usual}", certs, verify or certs is None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
