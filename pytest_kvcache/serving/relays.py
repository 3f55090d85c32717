"""Small programs that carry connections where two parts of a pair have no address in common.

vLLM (0.32) tells of its blocks on a Unix socket, or for TCP on all addresses of its machine or on none, and vllm-router
(0.1.17) takes `tcp://HOST:PORT` alone: one stands between, on loopback. Over machines there are two (`by_tls.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.serving.component import Component, Stage
from pytest_kvcache.serving.nodes import tls_relay
from pytest_kvcache.serving.places import Place

_SOURCE = Path(tls_relay.__file__)


def events_name(index: int) -> str:
    """Return the name of the program that carries what the `index`-th server tells of its blocks."""
    return f"events-{index}"


def relay(
    name: str,
    place: Place,
    python: str,
    *,
    listen: str,
    connect: str,
    stage: Stage = "servers",
    certificate: str = "",
    secret: Mapping[str, str] | None = None,
) -> Component:
    """Return a program that carries connections, and is ready once the end that it connects to can be reached.

    Args:
        name: Name of the component.
        place: Where it runs.
        python: Interpreter there; the program needs nothing else.
        listen: HOST:PORT or the path of a Unix socket, `tls://HOST:PORT` for TLS.
        connect: The same, of the other end.
        stage: When it starts.
        certificate: Certificate of both ends where one is TLS (PEM).
        secret: Secret environment, with the certificate's private key where this end must show that it has it.
    """
    source, shown, health = place.scratch / f"{name}.py", place.scratch / f"{name}.pem", place.port()
    way = ("--listen", listen, "--connect", connect, "--health", f"{bracketed(place.host)}:{health}")
    return Component(
        name=name,
        argv=(python, "-I", str(source), *way, *(("--certificate", str(shown)) if certificate else ())),
        stage=stage,
        secret_env=dict(secret or {}),
        files={source: _SOURCE.read_text(encoding="utf-8")} | ({shown: certificate} if certificate else {}),
        ready_url=f"{place.url(health)}/",
        place=place.name,
    )
