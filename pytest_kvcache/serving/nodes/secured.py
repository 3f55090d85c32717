"""A plan whose servers listen beyond their machine, made safe: a key for the run, and a guard in each server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pytest_kvcache.redaction import hide
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import no_proxy
from pytest_kvcache.serving.nodes import guard
from pytest_kvcache.serving.plan import ServingPlan

_SOURCE = Path(guard.__file__)
#: Name of the module on the node; the package is not installed in engines.
_MODULE = "kvcache_guard"


def new_key() -> str:
    """Return an API key for one boot, which no output shows from now on."""
    key = secrets.token_urlsafe(32)
    hide(key)
    return key


def secured(plan: ServingPlan, key: str, *, scratch: Mapping[str, Path], more: Mapping[str, str]) -> ServingPlan:
    """Return the plan with a key between load, router and servers, which is on no command line.

    The router hands on the header `Authorization` of each request, and vLLM takes its key from the environment.

    Args:
        plan: Plan of a pair of which servers run on other machines.
        key: API key.
        scratch: Folder of temporary files at each place beyond this machine, by the place's name.
        more: More secrets of the servers' environment (the caller's credentials for models).
    """
    nodes = no_proxy(*{urlsplit(url).hostname or "" for url in plan.server_urls.values()})
    components = []
    for each in plan.components:
        if each.stage == "servers" and each.place in scratch:
            components.append(_guarded(each, key, scratch[each.place], more))
        else:  # the router reaches nodes as directly as it reaches loopback
            components.append(replace(each, env={**each.env, **nodes}))
    return replace(plan, components=tuple(components), api_key=key)


def _guarded(component: Component, key: str, scratch: Path, more: Mapping[str, str]) -> Component:
    secret = {**more, **component.secret_env}
    if not component.name.startswith("vllm"):
        return replace(component, secret_env=secret)
    folder = scratch / f"guard-{component.name}"
    return replace(
        component,
        argv=(*component.argv, "--middleware", f"{_MODULE}.{guard.Guard.__name__}"),
        env={**component.env, "PYTHONPATH": str(folder), "FORWARDED_ALLOW_IPS": "127.0.0.1"},
        secret_env={**secret, guard.KEY: key},
        folders=(*component.folders, folder),
        files={**component.files, folder / f"{_MODULE}.py": _SOURCE.read_text(encoding="utf-8")},
    )
