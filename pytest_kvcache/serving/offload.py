"""What a tier adds to a serving pair, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kvcache.proof.claims import Claim
from pytest_kvcache.serving.component import Component


@dataclass(frozen=True)
class Offload:
    """How LMCache is to be configured, in the words of both of its modes.

    Args:
        l2_adapter: JSON of `lmcache server --l2-adapter`; None keeps KV in CPU RAM only (L1).
        engine_config: Keys of the in-process YAML (`LMCACHE_CONFIG_FILE`) beyond those of the CPU-RAM tier.
    """

    l2_adapter: Mapping[str, Any] | None = None
    engine_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TierPlan:
    """What a tier adds to a serving pair.

    Args:
        label: Name of the tier in every output; says so where something stands in for the real storage.
        offload: LMCache's configuration, or None for vLLM alone.
        storage: Components to start before the servers.
        folders: Made before boot and removed with all content at the end.
        env: Environment of the processes that talk to the storage.
        secret_env: The same, for credentials: never printed, logged or stored.
        facts: What the storage is, for comparing one run with another.
        claims: What counters are to prove, where it is not what follows from `offload`.
    """

    label: str
    offload: Offload | None = None
    storage: tuple[Component, ...] = ()
    folders: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    claims: Claim | None = None

    @property
    def claim(self) -> Claim:
        """Where the tier says that KV comes from."""
        if self.claims is not None:
            return self.claims
        if self.offload is None:
            return Claim.DEVICE
        return Claim.L2 if self.offload.l2_adapter is not None or self.offload.engine_config else Claim.L1
