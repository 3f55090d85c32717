"""How a balancer on this machine hears of the blocks of a vLLM server, which it goes by.

vLLM (0.32) publishes on a Unix socket, or for TCP on all addresses of its machine or on none, and vllm-router (0.1.17)
takes `tcp://HOST:PORT` alone. So a small program stands between, on loopback.
"""

from __future__ import annotations

from pathlib import Path

from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes import tls_relay
from pytest_kvcache.serving.places import LOOPBACK, Place

SOURCE = Path(tls_relay.__file__)


def relay_name(index: int) -> str:
    """Return the name of the program that carries the events of the `index`-th server."""
    return f"events-{index}"


def relay(at: Place, index: int, *, door: str, socket: Path) -> Component:
    """Return the program that carries the events of a server.

    Args:
        at: Place of the balancer.
        index: Number of the server in the pair, from 0.
        door: HOST:PORT on loopback, to which the balancer connects.
        socket: Unix socket on which the server publishes, on the same machine.
    """
    source, health = at.scratch / f"{relay_name(index)}.py", at.port()
    way = ("--listen", door, "--connect", str(socket), "--health", f"{LOOPBACK}:{health}")
    return Component(
        name=relay_name(index),
        argv=(at.tools.program("python"), "-I", str(source), *way),
        stage="servers",
        files={source: SOURCE.read_text(encoding="utf-8")},
        ready_url=f"http://{LOOPBACK}:{health}/",
        place=at.name,
    )
