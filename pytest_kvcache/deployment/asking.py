"""What servers of a deployment say of themselves over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests

from pytest_kvcache.endpoint.address import below
from pytest_kvcache.endpoint.certificates import verification
from pytest_kvcache.errors import BootError
from pytest_kvcache.redaction import redacted

_TIMEOUT_S = 10.0


def get(url: str, *, authorization: str = "", where: str) -> Mapping[str, Any]:
    """Return the JSON object at a URL.

    Args:
        url: URL to get.
        authorization: Value of the header of that name, "" for none.
        where: What is asked, for errors.

    Raises:
        BootError: Nothing answers there, or something else than such an object.
    """
    headers = {"Authorization": authorization} if authorization else {}
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = verification(url)
            answer = session.get(url, headers=headers, timeout=_TIMEOUT_S)
        if answer.status_code in {401, 403}:
            raise BootError(
                f"HTTP {answer.status_code} of {url}: it wants {'another' if authorization else 'an'} API key",
                where=where,
                todo="name the environment variable that has it with api_key_env",
            )
        if answer.status_code != 200:
            raise BootError(f"HTTP {answer.status_code} of {url}: {redacted(answer.text)[:200]}", where=where)
        found = answer.json()
    except requests.RequestException as error:
        raise BootError(
            f"{url}: {redacted(str(error))}", where=where, todo="is it up, and reached from here?"
        ) from None
    if not isinstance(found, dict):
        raise BootError(f"{url} answers with something else than expected: {str(found)[:200]}", where=where)
    return found


def models(base_url: str, *, authorization: str, where: str) -> dict[str, Mapping[str, Any]]:
    """Return the models that are served below a URL with /v1, by name.

    Raises:
        BootError: As `get` does, or the answer is no list of models.
    """
    said = get(below(base_url, "models"), authorization=authorization, where=where).get("data")
    if not isinstance(said, list):
        raise BootError("has no list of models", where=where)
    return {str(each["id"]): each for each in said if isinstance(each, dict) and "id" in each}


def version(server_url: str, *, authorization: str, where: str) -> str:
    """Return the version of a vLLM server.

    Raises:
        BootError: As `get` does.
    """
    return str(get(f"{server_url}/version", authorization=authorization, where=where).get("version", "unknown"))
