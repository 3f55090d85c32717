"""Which certificates are trusted: the same for requests on raw sockets and for those by the library `requests`."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from pytest_kvcache.errors import ConfigError

#: As `requests` and curl have them, then as OpenSSL has them (openssl-env(7)).
_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def ca_bundle(environ: Mapping[str, str] = os.environ) -> str:
    """Return the file or folder of certificates that the environment names, "" where it names none.

    Raises:
        ConfigError: It is not there.
    """
    for name in _VARIABLES:
        path = environ.get(name, "")
        if path and name == "SSL_CERT_DIR":
            path = next((each for each in path.split(os.pathsep) if Path(each).exists()), path)
        if path and not Path(path).exists():
            raise ConfigError(f"{path} is not there", where=name, todo="name a file of PEM certificates, or unset it")
        if path:
            return path
    return ""


def tls_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Return settings that trust what the environment names, or else what OpenSSL does.

    Raises:
        ConfigError: The environment names what is no file of certificates.
    """
    bundle = ca_bundle(environ)
    try:
        if not bundle:
            return ssl.create_default_context()
        is_folder = Path(bundle).is_dir()
        return ssl.create_default_context(cafile=None if is_folder else bundle, capath=bundle if is_folder else None)
    except ssl.SSLError as error:
        raise ConfigError(f"holds no certificates: {error.reason or error}", where=bundle) from None


def verification(url: str) -> bool | str:
    """Return what `requests` is to verify the certificate of `url` by: a file or folder, or True for its own.

    Raises:
        ConfigError: The URL is one of https, and the environment names what is not there.
    """
    return (ca_bundle() or True) if url.startswith("https:") else True
