"""Where the components of a pair run: addresses, ports, folders and programs of each place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.telemetry.allotment import Allotment, dealt

#: The address of places of this machine: nothing listens beyond it.
LOOPBACK = "127.0.0.1"


class EngineTools(Protocol):
    """What a plan needs from an engine environment."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of its packages, by distribution name; an engine that tells none counts as a current one."""

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return the command that starts vLLM's OpenAI server with `model`."""

    def program(self, name: str) -> str:
        """Return the path of the program `name` of the environment."""


@dataclass(frozen=True)
class Place:
    """One machine, or a part of one, on which components run.

    Args:
        tools: Programs of the engine there.
        model: Name of the model that vLLM loads, or its folder relative to `scratch`, where the processes run.
        port: Returns a port that is free there, at each call.
        scratch: Folder there for generated files, temporary files and sockets of the processes.
        host: IP address on which the components listen, and by which the others reach them.
        name: Name of the place in outputs; "" for this machine.
    """

    tools: EngineTools
    model: str
    port: Callable[[], int]
    scratch: Path
    host: str = LOOPBACK
    name: str = ""

    def url(self, port: int) -> str:
        """Return the base URL of what listens on a port of this place."""
        return f"http://{bracketed(self.host)}:{port}"


@dataclass(frozen=True)
class Placement:
    """Where each part of a pair runs.

    Args:
        servers: Place of each vLLM server.
        caches: Place of each LMCache server, beside its vLLM or where the storage is mounted.
        balancer: Place of the load balancer.
        gpus: GPUs of each vLLM server, as `CUDA_VISIBLE_DEVICES` names them at its place.
    """

    servers: tuple[Place, ...]
    caches: tuple[Place, ...]
    balancer: Place
    gpus: tuple[tuple[str, ...], ...]

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the engine, which are the same at all places."""
        return self.balancer.tools.versions


def all_at(place: Place, profile: Profile, gpus: Allotment | None = None) -> Placement:
    """Return the placement of a whole pair at one place.

    Args:
        place: The place.
        profile: Profile with the numbers of servers and of their GPUs.
        gpus: GPUs that may be used, given to the servers in turn; None for those of the machine, by number.

    Raises:
        ConfigError: Too few GPUs are allotted.
    """
    devices = dealt(gpus, servers=profile.servers, each=profile.gpus_per_server)
    each = (place,) * profile.servers
    return Placement(servers=each, caches=each, balancer=place, gpus=tuple(devices))
