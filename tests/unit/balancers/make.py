"""What the tests of balancers make: settings, and what a balancer stands in front of."""

from __future__ import annotations

import itertools
from pathlib import Path

from pytest_kvcache.config.balancer import POLICIES, Balancer
from pytest_kvcache.serving.balancers.base import Front

SERVERS = {"vllm-0": "http://127.0.0.1:8001", "vllm-1": "http://127.0.0.1:8002"}
#: Every kind with every policy that is known of it.
EVERY = [(kind, policy) for kind, known in POLICIES.items() for policy in known]
WITH_CONFIGURATION = [(kind, policy) for kind, policy in EVERY if kind in {"haproxy", "nginx"}]


def settings(kind: str, policy: str = "", **more: object) -> Balancer:
    """Return settings as a profile has them."""
    if kind == "url":
        more = {"url": "http://lb:8000", **more}
    return Balancer.model_validate({"kind": kind, "policy": policy, **more})


class Named:
    """Programs by their plain names."""

    def program(self, name: str) -> str:
        """Return the name."""
        return name


def front(scratch: Path, servers: dict[str, str] | None = None, host: str = "127.0.0.1", first: int = 9000) -> Front:
    """Return what a balancer stands in front of; ports count from `first`."""
    ports = itertools.count(first)
    return Front(servers or SERVERS, host, lambda: next(ports), scratch, Named(), model="m", block_tokens=128)
