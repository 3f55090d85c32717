"""What a tier kind is: a validated table of `kvcache.toml` that says what it adds to a serving pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ConfigDict

from pytest_kvcache.config.profile import Profile, Strict
from pytest_kvcache.serving.component import Component


@dataclass(frozen=True)
class TierContext:
    """What a tier may use while it plans; nothing here starts anything.

    Args:
        profile: The profile that will be served.
        run_id: Names everything of this run that could meet another run's.
        scratch: Folder that is removed when the run ends.
        storage_home: Folder on a disk (not tmpfs) below which a stand-in folder may be made.
        tool: Returns the path of a program (`rclone`) of the engine environment, or None.
        port: Returns a TCP port that is leased to this run.
        environ: The environment that credentials are read from.
    """

    profile: Profile
    run_id: str
    scratch: Path
    storage_home: Path
    tool: Callable[[str], Path | None]
    port: Callable[[], int]
    environ: Mapping[str, str]


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
    """

    label: str
    offload: Offload | None = None
    storage: tuple[Component, ...] = ()
    folders: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)


class Tier(Protocol):
    """A configured tier. Third parties register a class of their own in the group `pytest_kvcache.tiers`."""

    @property
    def name(self) -> str:
        """The table's name in `kvcache.toml`; what `--tier` takes."""

    def label(self, ctx: TierContext) -> str:
        """The name for outputs, with what stands in for what."""

    def unavailable(self, ctx: TierContext) -> str | None:
        """Why the tier cannot run here, or None where it can."""

    def plan(self, ctx: TierContext) -> TierPlan:
        """What to add to the pair."""


class TierModel(Strict):
    """Base of the tier kinds: a validated, immutable table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    def label(self, ctx: TierContext) -> str:  # noqa: ARG002 - part of the protocol
        """The tier's name: nothing stands in for it."""
        return self.name

    def unavailable(self, ctx: TierContext) -> str | None:  # noqa: ARG002 - part of the protocol
        """None: nothing is needed beyond the engine."""
        return None
