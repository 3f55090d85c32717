"""Shows the counters of an LMCache inside vLLM to the cluster: its own interface is on Unix sockets of the node.

One process beside each such vLLM. Counters may be read by all of the cluster; emptying L1 needs the boot's key and is
done for this node alone, as the guard of the servers has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes.guard import KEY, Guard
from pytest_kvcache.serving.places import Place
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.telemetry import internal_api

_HEALTH = "/health"
_MODULE = "pytest_kvcache.serving.nodes.relay"


def relayed(plan: ServingPlan, places: Mapping[str, Place], python: Mapping[str, Path], key: str) -> ServingPlan:
    """Return the plan with a relay beside each vLLM of another machine that has its LMCache inside.

    Args:
        plan: Plan of a pair.
        places: Places beyond this machine, by name.
        python: Interpreter with this package at each of them.
        key: API key of the boot.
    """
    metrics, components = dict(plan.metrics_urls), list(plan.components)
    for each in plan.components:
        inside = each.name.replace("vllm", "lmcache", 1)
        own = {name: url for name, url in metrics.items() if name.partition(".")[0] == inside}
        if each.place not in places or each.name == inside or not any(map(internal_api.is_internal, own.values())):
            continue
        place = places[each.place]
        component, urls = _relay(place, f"counters-{each.name}", own, python[each.place], key)
        components.append(component)
        metrics |= urls
    return replace(plan, components=tuple(components), metrics_urls=metrics)


def _relay(
    place: Place, name: str, own: Mapping[str, str], python: Path, key: str
) -> tuple[Component, dict[str, str]]:  # fmt: skip
    port = place.port()
    argv = [str(python), "-m", _MODULE, "--host", place.host, "--port", str(port)]
    argv += [f"{inside}={url}" for inside, url in own.items()]
    component = Component(
        name=name,
        argv=tuple(argv),
        stage="servers",
        secret_env={KEY: key},
        ready_url=f"{place.url(port)}{_HEALTH}",
        place=place.name,
    )
    return component, {inside: f"{place.url(port)}{internal_api.RELAYED}{inside}/metrics" for inside in own}


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Print no line a request."""

    def do_GET(self) -> None:
        """Answer with the counters of an LMCache."""
        if self.path == _HEALTH:
            return self._whole(200, "")
        name = self._name("/metrics")
        if name not in self.server.sockets:
            return self._whole(404, "no such counters")
        url = self.server.sockets[name]
        try:
            internal_api.count_now(url)
            return self._whole(200, internal_api.read_metrics(url))
        except requests.RequestException as error:
            return self._whole(502, str(error))

    def do_POST(self) -> None:
        """Empty the L1 of an LMCache."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if refused := self.server.guard.refusal(self._scope()):
            return self._whole(*refused)
        name = self._name("/clear")
        if name not in self.server.sockets:
            return self._whole(404, "no such cache")
        try:
            internal_api.clear_l1(self.server.sockets[name])
        except requests.RequestException as error:
            return self._whole(502, str(error))
        return self._whole(200, json.dumps({"status": "ok"}))

    def _name(self, suffix: str) -> str:
        return self.path.removeprefix(internal_api.RELAYED).removesuffix(suffix)

    def _scope(self) -> dict[str, Any]:
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        own = self.connection.getsockname()
        scope = {"type": "http", "method": self.command, "path": self.path, "headers": headers}
        return {**scope, "client": self.client_address, "server": own}

    def _whole(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, sockets: Mapping[str, str]) -> None:
        self.sockets = sockets
        self.guard = Guard(_nothing)
        super().__init__((host, port), _Request)


async def _nothing(*_: Any) -> None:
    """Answer nothing: the guard only judges here."""


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("sockets", nargs="+", metavar="NAME=URL")
    args = parser.parse_args(argv)
    sockets = dict(each.split("=", 1) for each in args.sockets)
    _Server(args.host, args.port, sockets).serve_forever()


if __name__ == "__main__":
    main()
