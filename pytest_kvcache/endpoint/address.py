"""Where a load goes, as a checked address: scheme, name, port, path and query, and what authorizes its requests."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.redaction import hide


@dataclass(frozen=True)
class Endpoint:
    """An address without secrets, and the secret apart from it.

    Args:
        url: With scheme, host, path and query, and without user and password.
        authorization: Value of the header `Authorization`, "" for none. It is in no file and no output.
    """

    url: str
    authorization: str = ""


def bracketed(host: str) -> str:
    """Return a host as it stands in a URL, or before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def endpoint(text: str, *, where: str, key: str = "") -> Endpoint:
    """Return the endpoint of a URL.

    A user and a password in the URL become basic authentication (RFC 7617).

    Args:
        text: The URL.
        where: The option that it is of, for errors.
        key: An API key, sent as a bearer token (RFC 6750); "" for none.

    Raises:
        ConfigError: It is no http or https URL with a host that can be resolved, its port is none, it is the address
            of one call of the API, or it has a password beside a key.
    """
    try:
        url = urlsplit(text.strip())
        port, host = url.port, ascii_host(url.hostname or "")
    except ValueError as error:
        raise ConfigError(f"is no URL: {_without_user(str(error), text)}", where=where, todo=_TODO) from None
    if url.scheme not in {"http", "https"}:
        raise ConfigError(
            f"must begin with http:// or https://, not {url.scheme or 'nothing'!r}", where=where, todo=_TODO
        )
    if not host:
        raise ConfigError("names no host", where=where, todo=_TODO)
    if port == 0:
        raise ConfigError("has port 0, on which nobody listens", where=where, todo=_TODO)
    if any(ord(c) <= 32 or ord(c) == 127 for c in text.strip()):
        raise ConfigError("has a space or a control character in it", where=where, todo=_TODO)
    if call := _CALL.search(url.path):
        raise ConfigError(
            f"ends with {call[0].rstrip('/')}, which a load adds by itself",
            where=where,
            todo=f"give the address up to there: …{url.path[: call.start()] or '/v1'}",
        )
    authorization = f"Bearer {key}" if key else ""
    if "@" in url.netloc:
        if key:
            raise ConfigError("has a user or password beside --api-key-env", where=where, todo="give one of the two")
        user, password = unquote(url.username or ""), unquote(url.password or "")
        hide(password or user)
        authorization = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        hide(authorization.partition(" ")[2])
    if ":" in host:
        address, mark, zone = host.partition("%")
        # Whatever way it was written, it is kept as RFC 6874 has it: programs read a `%` alone in several ways.
        host = f"[{address}{mark and '%25'}{zone.removeprefix('25')}]"
    netloc = host + (f":{port}" if port else "")
    path, query = (quote(part, safe=_ASCII) for part in (url.path, url.query))
    return Endpoint(urlunsplit((url.scheme, netloc, path, query, "")), authorization)


#: Calls of OpenAI's API that a load makes, below the /v1 of an endpoint.
_CALL = re.compile(r"/(?:chat/)?completions/*$")
_TODO = "give scheme, host and, where it is not the usual one, port: http://localhost:8000/v1"


#: A URL's own characters: the rest is percent-encoded (RFC 3987, 3.1), and what is encoded already stays as it is.
_ASCII = "".join(map(chr, range(33, 127)))


def ascii_host(host: str) -> str:
    """Return a host's name in the letters that DNS and the header `Host` have (RFC 3490); an address as it is.

    Raises:
        ValueError: A label of the name is empty, or longer than 63 letters.
    """
    if ":" in host:
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"host {host!r}: {error.__cause__ or error}") from None


def host_of(url: SplitResult) -> str:
    """Return the name or address of an endpoint's URL as the system resolves it: a zone stands behind a `%`."""
    return (url.hostname or "").replace("%25", "%", 1)


def host_header(url: SplitResult) -> str:
    """Return what the header `Host` has: name and port, and no zone, which says nothing to others (RFC 6874)."""
    return re.sub(r"%[^\]]*", "", url.netloc.rpartition("@")[2])


def below(url: str, path: str) -> str:
    """Return the URL with more path, and its query kept.

    Args:
        url: Of an endpoint.
        path: To be added, without a slash before it.
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))


def without_version(url: str) -> str:
    """Return the URL without the /v1 at the end of its path: vLLM's tokenizer API is beside it, not below it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1")))


def target(url: SplitResult) -> str:
    """Return path and query, as a request line has them."""
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def read_key(name: str, environ: Mapping[str, str], *, where: str = "--api-key-env") -> str:
    """Return the API key in an environment variable, without the line end that files of secrets have.

    Args:
        name: Name of the variable.
        environ: The environment.
        where: The option or key that names the variable, for errors.

    Raises:
        ConfigError: The variable is not set, is empty, or holds what no header may hold; the key is not in the error.
    """
    value = environ.get(name)
    where = f"{where} {name}"
    if value is None:
        raise ConfigError("is not set", where=where, todo=f"export {name}, or name the variable that has the key")
    key = value.strip()
    if not key:
        raise ConfigError("is empty", where=where, todo=f"export {name} with the key in it")
    if any(not 33 <= ord(c) <= 126 for c in key):
        raise ConfigError(
            "holds a space, a line end or a letter beyond ASCII within the key, which no HTTP header may have",
            where=where,
            todo="export the key alone",
        )
    hide(key)
    return key


def _without_user(message: str, url: str) -> str:
    """Return an error of the URL parser without the part of the URL that may hold a password."""
    return "its port or host cannot be read" if "@" in url else message
