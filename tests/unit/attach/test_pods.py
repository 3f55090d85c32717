"""Pods found by their labels, through a stub of Kubernetes' API server: no cluster was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from pytest_kvcache.config.attach import Attach, Kubernetes
from pytest_kvcache.deployment import pods
from pytest_kvcache.deployment.pods import Pod, changes
from pytest_kvcache.deployment.standing import find
from pytest_kvcache.errors import BootError, ConfigError

POD = Pod("kv-0", "uid-0", "10.0.0.1", "node-a", ("vllm:1",), 0)
OTHER = Pod("kv-1", "uid-1", "10.0.0.2", "node-b", ("vllm:1",), 0)


@dataclass
class ApiServer:
    """A stub of the API server.

    Args:
        items: Pods that it lists.
        status: Status of its answers.
        asked: Paths and queries of requests.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    asked: list[tuple[str, dict[str, list[str]], str]] = field(default_factory=list)
    kubeconfig: Path = Path()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """A stub on loopback, with a kubeconfig that leads to it."""
    stub = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            stub.asked.append((url.path, parse_qs(url.query), self.headers.get("Authorization", "")))
            body = json.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": stub.items}).encode()
            self.send_response(stub.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stub.kubeconfig = tmp_path / "kubeconfig"
    stub.kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "stub", "user": "me"}}],
                "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "me", "user": {"token": "kube-token"}}],
            }
        )
    )
    yield stub
    server.shutdown()
    server.server_close()


def item(name: str, ip: str, *, ready: bool = True, **more: Any) -> dict[str, Any]:
    """Return a pod as the API server lists it."""
    meta = {"name": name, "uid": f"uid-{name}", **({"deletionTimestamp": "2026-01-01"} if more.get("ending") else {})}
    container = {"name": "vllm", "image": "vllm:1", "ports": [{"name": "container-port", "containerPort": 8000}]}
    status = {
        "podIP": ip,
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [
            {"name": "vllm", "restartCount": more.get("restarts", 0), "imageID": "docker.io/vllm@sha256:abc"}
        ],
    }
    return {"metadata": meta, "spec": {"nodeName": f"node-{name}", "containers": [container]}, "status": status}


def wanted(api: ApiServer, **more: object) -> Kubernetes:
    """Return settings that lead to the stub."""
    values = {"selector": "kvcache-tier=pnfs", "namespace": "llm", "kubeconfig": str(api.kubeconfig), **more}
    return Kubernetes.model_validate(values)


def test_pods_become_servers(api: ApiServer) -> None:
    """Pods with the labels are the servers, by name; their addresses, nodes, images and restarts are facts."""
    api.items = [item("b", "10.0.0.2", restarts=3), item("a", "fd00::1")]
    settings = Attach(
        tier="pnfs", base_url="http://r/v1", kubernetes=wanted(api, port="container-port", lmcache_port=8080)
    )
    standing = find(settings, lmcache_inside=False)
    assert standing.server_urls == {"vllm-0": "http://[fd00::1]:8000", "vllm-1": "http://10.0.0.2:8000"}
    assert standing.metrics_urls["lmcache-1"] == "http://10.0.0.2:8080/metrics"
    assert standing.aliases == {"a": "vllm-0", "b": "vllm-1"}
    assert standing.facts()["pod.vllm-1"] == "b on node-b, vllm:1@sha256:abc, 3 restarts"
    assert standing.known() == {"deployment": "r", "servers": "2"}
    ((path, query, key),) = api.asked
    assert path == "/api/v1/namespaces/llm/pods"
    assert query["labelSelector"] == ["kvcache-tier=pnfs"]
    assert key == "Bearer kube-token"
    assert standing.moved() == []
    api.items[0] = item("c", "10.0.0.3")
    assert "1 of 2 pods were replaced during the run" in standing.moved()[0]


@pytest.mark.parametrize(
    ("items", "status", "expected"),
    [
        ([], 200, "no pod has these labels"),
        ([item("a", "10.0.0.1"), item("b", "10.0.0.2", ready=False)], 200, "1 of 2 pods are not ready: b"),
        ([item("a", "10.0.0.1", ending=True)], 200, r"1 of 1 pods are not ready: a \(ending\)"),
        ([], 403, "refuses to list pods: HTTP 403"),
    ],
)
def test_a_deployment_that_cannot_be_measured(
    api: ApiServer, items: list[dict[str, Any]], status: int, expected: str
) -> None:
    """A deployment without pods, or on its way to another state, is named before anything is sent."""
    api.items, api.status = items, status
    with pytest.raises(BootError, match=expected):
        pods.serving(wanted(api))


def test_a_kubeconfig_that_cannot_be_used(tmp_path: Path) -> None:
    """A kubeconfig that is not there is a wrong setting, named with its path."""
    settings = Kubernetes.model_validate({"selector": "a=b", "kubeconfig": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"none: cannot be used"):
        pods.listed(settings)


def test_an_api_server_that_is_gone(api: ApiServer) -> None:
    """An API server that does not answer is a failure of its own, and no deployment without pods."""
    config = yaml.safe_load(api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    api.kubeconfig.write_text(yaml.safe_dump(config))
    with pytest.raises(BootError, match="the API server does not answer"):
        pods.listed(wanted(api))
    standing = replace(
        find(Attach(tier="pnfs", base_url="http://r/v1"), lmcache_inside=False),
        settings=Attach(tier="pnfs", base_url="http://r/v1", kubernetes=wanted(api)),
    )
    assert standing.moved()[0].startswith("whether pods were replaced during the run is not known")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([POD, OTHER], ""),
        ([OTHER, POD], ""),
        ([POD], "scaled from 2 to 1 pods during the run (gone: kv-1 on node-b; new: none)"),
        ([POD, OTHER, replace(POD, name="kv-2", uid="uid-2")], "scaled from 2 to 3 pods during the run"),
        (
            [POD, replace(OTHER, uid="uid-9")],
            "1 of 2 pods were replaced during the run by others: a rolling restart, or",
        ),
        (
            [POD, replace(OTHER, uid="uid-9", images=("vllm:2",))],
            "1 of 2 pods were replaced during the run by another image: a rolling restart",
        ),
        ([POD, replace(OTHER, restarts=1)], "kv-1: its containers were started again during the run (0 -> 1 restarts)"),
        ([POD, replace(OTHER, ending=True)], "pod kv-1 is being ended"),
        ([POD, replace(OTHER, ready=False)], "pod kv-1 is no longer ready"),
        ([POD, replace(OTHER, images=("vllm:2",))], "kv-1: its image changed during the run (vllm:2)"),
    ],
)
def test_what_becomes_of_a_deployment(after: list[Pod], expected: str) -> None:
    """Scaling, replacement, restarts and readiness are told apart, and an order of listing is nothing."""
    found = changes([POD, OTHER], after)
    assert len(found) == bool(expected)
    assert expected in "".join(found)
