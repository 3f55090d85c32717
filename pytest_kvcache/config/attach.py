"""A deployment that already stands, as validated data: `[attach.TIER]` of kvcache.toml."""

from __future__ import annotations

import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, field_validator, model_validator

from pytest_kvcache.endpoint.address import endpoint
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.strict import NonBlank, Strict, UserPath
from pytest_kvcache.verdict.cells import FolderName

#: Names of components: what the ledger finds by their beginning, and no dot in the name of a server.
_SERVER, _COMPONENT = re.compile(r"vllm-[A-Za-z0-9_-]+"), re.compile(r"(vllm|lmcache)-[A-Za-z0-9_-]+(\.[0-9]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What RFC 1123 allows as the name of a namespace or a port.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Kubernetes(Strict):
    """Where the pods of a deployment are found."""

    selector: str = Field(
        min_length=1, description="label selector of the vLLM pods, as `kubectl get pods -l` takes it"
    )
    namespace: NonBlank = Field(default="default", description="namespace of the pods")
    port: PositiveInt | str = Field(default=8000, description="port of vLLM in each pod: a number, or a port's name")
    lmcache_port: PositiveInt | str | None = Field(
        default=None, description="port of the HTTP frontend of an LMCache server in the same pod, if there is one"
    )
    kubeconfig: UserPath | None = Field(
        default=None, description="kubeconfig; by default $KUBECONFIG, ~/.kube/config, or the pod's own account"
    )
    context: str = Field(default="", description="context of the kubeconfig; by default its current one")

    @field_validator("namespace")
    @classmethod
    def _is_a_label(cls, value: str) -> str:
        if not _LABEL.fullmatch(value):
            raise ValueError(f"{value!r:.80} is no name of a namespace")
        return value

    @field_validator("port", "lmcache_port")
    @classmethod
    def _is_a_port(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and not _LABEL.fullmatch(value):
            raise ValueError(f"{value!r:.80} is no number and no name of a port")
        if isinstance(value, int) and value > 65535:
            raise ValueError(f"{value} is no port")
        return value


class Attach(Strict):
    """A deployment that already stands and serves one tier; nothing of it is started, emptied or ended."""

    tier: FolderName
    base_url: str = Field(description="URL of the router or gateway, with /v1; requests of the load go there")
    servers: dict[str, str] = Field(
        default_factory=dict, description="base URL of each vLLM server, without /v1, by name (`vllm-0`)"
    )
    metrics: dict[str, str] = Field(
        default_factory=dict,
        description="Prometheus endpoints by name (`vllm-0`, `lmcache-0`, `lmcache-0.1` of a second rank); each vLLM's "
        "is by default /metrics of its server, and so is that of an LMCache inside vLLM",
    )
    kubernetes: Kubernetes | None = Field(default=None, description="find the servers by labels, in place of `servers`")
    api_key_env: str = Field(default="", description="environment variable with the API key of router and servers")
    deployment: str = Field(
        default="", max_length=80, description="name of the deployment in baselines; by default the host of base_url"
    )
    facts: dict[str, str] = Field(
        default_factory=dict,
        description="what else must be equal for a comparison and nothing here can ask for, such as gpus or storage",
    )
    other_traffic: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the prompt tokens of a run's time that may be others'; above it the run is incomparable",
    )

    @field_validator("base_url")
    @classmethod
    def _has_a_version(cls, value: str) -> str:
        url = _checked(value)
        if not urlsplit(url).path.rstrip("/").endswith("/v1"):
            raise ValueError("must end in /v1, as OpenAI clients take it")
        return url.rstrip("/")

    @field_validator("servers")
    @classmethod
    def _servers_are_named(cls, value: dict[str, str]) -> dict[str, str]:
        found = {name: _checked(url).rstrip("/") for name, url in value.items()}
        for name, url in found.items():
            if not _SERVER.fullmatch(name):
                raise ValueError(f"{name!r:.80} is no name of a server: vllm-0, vllm-1, …")
            if urlsplit(url).path.endswith("/v1"):
                raise ValueError(f"{name} has /v1 at its end: leave it out")
        return _apart(found)

    @field_validator("metrics")
    @classmethod
    def _metrics_are_named(cls, value: dict[str, str]) -> dict[str, str]:
        found = {name: _checked(url) for name, url in value.items()}
        for name, url in found.items():
            if not _COMPONENT.fullmatch(name):
                raise ValueError(f"{name!r:.80} is no name of a component: vllm-0, lmcache-0, lmcache-0.1, …")
            if not urlsplit(url).path.strip("/"):
                raise ValueError(f"{name} has no path: that of Prometheus is mostly /metrics")
        return found

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        if value and not _VARIABLE.fullmatch(value):
            raise ValueError("is no name of an environment variable; the key itself belongs in no file")
        return value

    @model_validator(mode="after")
    def _found_in_one_way(self) -> Self:
        if self.kubernetes is not None and self.servers:
            raise ValueError("servers: Kubernetes finds them; give one of the two")
        if self.kubernetes is not None and self.metrics:
            raise ValueError("metrics: the addresses of pods change; give kubernetes.lmcache_port")
        unknown = [name for name in self.metrics if name.startswith("vllm") and name not in self.servers]
        beside = {name.replace("vllm", "lmcache", 1) for name in self.servers}
        unknown += [n for n in self.metrics if n.startswith("lmcache") and n.partition(".")[0] not in beside]
        if unknown:
            known = ", ".join(self.servers) or "none"
            raise ValueError(f"metrics.{unknown[0]}: no server has that number; servers: {known}")
        return self

    @property
    def name(self) -> str:
        """What the deployment is called in outputs and baselines."""
        return self.deployment or (urlsplit(self.base_url).hostname or "")


def _checked(text: str) -> str:
    """Return a URL, checked.

    Raises:
        ValueError: It is none, or holds a user or password.
    """
    try:
        found = endpoint(text, where="")
    except ConfigError as error:
        raise ValueError(f"{error.what}; {error.todo}") from None
    if found.authorization:
        raise ValueError("has a user or password in it, which no file may hold; name a variable with api_key_env")
    return found.url


def _apart(urls: dict[str, str]) -> dict[str, str]:
    by_url: dict[str, str] = {}
    for name, url in urls.items():
        if url in by_url:
            raise ValueError(f"{by_url[url]} and {name} are one address; each server is named once")
        by_url[url] = name
    return urls
