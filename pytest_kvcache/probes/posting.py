"""Sends the probes' requests: prompts from here, and what empties caches from where the server takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, overload

import requests

from pytest_kvcache.endpoint.certificates import verification
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.redaction import redacted
from pytest_kvcache.serving.control import Control

_TIMEOUT_S = 120.0


class ProbeError(KvCacheError):
    """A probe could not be carried out: no verdict may rest on the boot, but the session need not end."""


@dataclass(frozen=True)
class Poster:
    """Sends requests to components of a pair.

    Args:
        authorization: Value of the header of that name, "" for none.
        control: Sends requests that serve nobody beyond the server's machine; None where the servers are on this one.
    """

    authorization: str = field(default="", repr=False)
    control: Control | None = None

    @overload
    def empty(self, component: str, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]: ...

    @overload
    def empty(
        self, component: str, url: str, body: Mapping[str, Any] | None, *, absent_ok: bool
    ) -> dict[str, Any] | None: ...

    def empty(
        self, component: str, url: str, body: Mapping[str, Any] | None, *, absent_ok: bool = False
    ) -> dict[str, Any] | None:
        """Send a request that empties a cache; return the JSON of its answer, as `post` does.

        Raises:
            ProbeError: The component refused, or does not answer.
        """
        if self.control is None:
            return self.post(component, url, body, absent_ok=absent_ok)
        try:
            status, text = self.control.post(component, url, body)
        except KvCacheError as error:
            raise ProbeError(f"{url}: {error.what}", where=component) from None
        return _json(component, url, status, text, absent_ok=absent_ok)

    @overload
    def post(self, component: str, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]: ...

    @overload
    def post(
        self, component: str, url: str, body: Mapping[str, Any] | None, *, absent_ok: bool
    ) -> dict[str, Any] | None: ...

    def post(
        self, component: str, url: str, body: Mapping[str, Any] | None, *, absent_ok: bool = False
    ) -> dict[str, Any] | None:
        """Return the JSON of an answer; None where `absent_ok` is set and the endpoint does not exist.

        Raises:
            ProbeError: The component refused, or does not answer.
        """
        headers = {"Authorization": self.authorization} if self.authorization else {}
        try:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = verification(url)
                response = session.post(url, json=body, headers=headers, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise ProbeError(f"{url}: {error}", where=component) from None
        return _json(component, url, response.status_code, response.text, absent_ok=absent_ok)


def _json(component: str, url: str, status: int, text: str, *, absent_ok: bool) -> dict[str, Any] | None:
    if absent_ok and status == 404:
        return None
    if status != 200:
        raise ProbeError(redacted(f"HTTP {status} of {url}: {text[:200]}"), where=component)
    try:
        said = json.loads(text) if text else {}
    except ValueError as error:
        raise ProbeError(f"{url}: {error}", where=component) from None
    return said if isinstance(said, dict) else {}
