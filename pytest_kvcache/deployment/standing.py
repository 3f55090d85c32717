"""A deployment that already stands: where its servers are, and whether it is still the one that it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_kvcache.config.attach import Attach
from pytest_kvcache.deployment import pods as kubernetes
from pytest_kvcache.deployment.pods import Pod
from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.errors import BootError, KvCacheError


@dataclass(frozen=True)
class Standing:
    """A deployment, as it was found.

    Args:
        settings: What was said of it.
        server_urls: Base URL of each vLLM server by name, without /v1; empty where only the router is known.
        metrics_urls: Prometheus endpoint of each vLLM and LMCache by name.
        pods: Pod of each vLLM server by the server's name; empty without Kubernetes.
        authorization: Value of the header of that name for router and servers, "" for none.
    """

    settings: Attach
    server_urls: Mapping[str, str] = field(default_factory=dict)
    metrics_urls: Mapping[str, str] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    authorization: str = field(default="", repr=False)

    @property
    def base_url(self) -> str:
        """URL with /v1 to which the load goes."""
        return self.settings.base_url

    @property
    def aliases(self) -> dict[str, str]:
        """The server's name, by the name of its pod, by which a server may call itself in its answers."""
        return {pod.name: server for server, pod in self.pods.items()}

    def facts(self) -> dict[str, str]:
        """Return where the deployment is and what it consists of, for the record of a run."""
        found = {"deployment": self.settings.name, "base_url": self.base_url}
        found |= {f"server.{name}": url for name, url in self.server_urls.items()}
        for server, pod in self.pods.items():
            found[f"pod.{server}"] = f"{pod.name} on {pod.node}, {', '.join(pod.images)}, {pod.restarts} restarts"
        return found

    def known(self) -> dict[str, str]:
        """Return what must be equal for a comparison, as far as it is known without asking a server."""
        # Images are versions: they are what a run tests, and no reason against a comparison.
        return {
            "deployment": self.settings.name,
            "servers": str(len(self.server_urls)) if self.server_urls else "unknown",
            **self.settings.facts,
        }

    def changes(self) -> list[str]:
        """Return what became of the pods since the deployment was found, a line each.

        Raises:
            BootError: The API server does not answer: whether pods moved is then not known.
        """
        if self.settings.kubernetes is None:
            return []
        return kubernetes.changes(tuple(self.pods.values()), kubernetes.listed(self.settings.kubernetes))

    def moved(self) -> list[str]:
        """Return the same once a run is over; that it cannot be told is a line of its own."""
        try:
            return self.changes()
        except KvCacheError as error:
            return [f"whether pods were replaced during the run is not known: {error.where}: {error.what}"]


def find(settings: Attach, *, lmcache_inside: bool, authorization: str = "") -> Standing:
    """Return a deployment, its servers found by Kubernetes where the settings say so.

    Args:
        settings: What was said of it.
        lmcache_inside: Whether LMCache runs inside vLLM, whose endpoint then has LMCache's counters too.
        authorization: Value of the header of that name, "" for none.

    Raises:
        BootError: Pods are missing or not ready, or the API server does not answer.
        ConfigError: Kubernetes cannot be asked from here.
    """
    pods: dict[str, Pod] = {}
    servers, metrics = dict(settings.servers), dict(settings.metrics)
    wanted = settings.kubernetes
    if wanted is not None:
        for index, pod in enumerate(kubernetes.serving(wanted)):
            name = f"vllm-{index}"
            pods[name] = pod
            servers[name] = _url(pod, wanted.port)
            if wanted.lmcache_port is not None:
                metrics[f"lmcache-{index}"] = f"{_url(pod, wanted.lmcache_port)}/metrics"
    for name, url in servers.items():
        metrics.setdefault(name, f"{url}/metrics")
        beside = name.replace("vllm", "lmcache", 1)
        if lmcache_inside and not any(each.partition(".")[0] == beside for each in metrics):
            metrics[beside] = metrics[name]
    return Standing(settings, servers, metrics, pods, authorization)


def _url(pod: Pod, port: int | str) -> str:
    if not pod.ip:
        raise BootError("has no address yet", where=f"pod {pod.name}")
    host = bracketed(pod.ip)
    return f"http://{host}:{pod.port(port)}"
