"""What a kind of balancer must answer, and what it may use for its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.serving.component import Component

#: Requests that may be under way before a balancer refuses more.
MAX_INFLIGHT = 8192


class Programs(Protocol):
    """Where programs are looked for."""

    def program(self, name: str) -> str:
        """Return the path of the program `name`."""


@dataclass(frozen=True)
class Front:
    """What a balancer stands in front of, and what it may use; nothing here starts anything.

    Args:
        servers: Base URL of each vLLM server by name, without /v1.
        host: IP address to listen on.
        port: Returns a free port at each call.
        scratch: Folder for its files, which is removed when the run ends.
        tools: Programs of the place where it runs.
        model: The model name that requests carry.
        block_tokens: vLLM's block size (tokens).
    """

    servers: Mapping[str, str]
    host: str
    port: Callable[[], int]
    scratch: Path
    tools: Programs
    model: str = ""
    block_tokens: int = 16

    def url(self, port: int) -> str:
        """Return the base URL of what listens on a port here."""
        return f"http://{self.bracketed}:{port}"

    @property
    def bracketed(self) -> str:
        """The address as it stands in URLs and configurations."""
        return bracketed(self.host)

    @property
    def beyond(self) -> bool:
        """Whether it is reached from other machines, which are served prompts and nothing else."""
        return not ip_address(self.host).is_loopback

    def addresses(self) -> dict[str, str]:
        """Return host and port of each server by name, as a configuration has them."""
        return {name: urlsplit(url).netloc for name, url in self.servers.items()}


@dataclass(frozen=True)
class EventSource:
    """How a balancer hears of the blocks of a server; what joins the two ends is in `serving/relays.py`.

    Args:
        door: HOST:PORT on loopback to which the balancer connects.
        socket: Name of the Unix socket on which the server publishes, in the folder `scratch` of its place.
    """

    door: str
    socket: str


@dataclass(frozen=True)
class BalancerPlan:
    """How requests reach the servers.

    Args:
        base_urls: Where requests go, with /v1: one URL, or those that the client takes turns over.
        component: The process that balances; None where the run starts none.
        metrics_url: What it says of itself, "" where nothing.
        events: How it hears of the blocks of each server, by number; empty where it goes by none.
    """

    base_urls: tuple[str, ...]
    component: Component | None = None
    metrics_url: str = ""
    events: tuple[EventSource, ...] = ()


class BalancerKind(Protocol):
    """A kind of balancer: `[profiles.NAME.balancer]` names it with `kind`."""

    #: Program that must be on the machine, "" where there is none.
    program: str
    #: What to do where the program is missing.
    install: str

    def plan(self, settings: Balancer, front: Front) -> BalancerPlan:
        """Return how requests reach the servers of `front`.

        Raises:
            ConfigError: A template cannot be read or filled in.
        """

    def server_args(self, settings: Balancer, scratch: Path, index: int) -> tuple[str, ...]:
        """Return what the `index`-th vLLM server needs so that the balancer can do its work."""

    def version_argv(self, program: str) -> Sequence[str]:
        """Return the command that prints the program's version, nothing where the engine knows it."""

    def check_argv(self, program: str, component: Component) -> Sequence[str]:
        """Return the command by which the program itself checks its configuration, nothing where it has none."""


class Plain:
    """What most kinds answer."""

    program = ""
    install = ""

    def server_args(self, settings: Balancer, scratch: Path, index: int) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: servers need to know nothing of most balancers."""
        return ()

    def version_argv(self, program: str) -> Sequence[str]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def check_argv(self, program: str, component: Component) -> Sequence[str]:  # noqa: ARG002
        """Return nothing."""
        return ()
