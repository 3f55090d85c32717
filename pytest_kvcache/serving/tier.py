"""What a tier must answer, and what it may use for its answers; the kinds of tiers are in `tiers/`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_kvcache.check import Check
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.places import Place, Placement


class Call(Protocol):
    """Runs a program that `tool` named to the end."""

    def __call__(self, argv: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Return the program's exit code and output.

        Raises:
            OSError: The program could not be started.
            TimeoutExpired: The program did not end in time.
        """


def call_here(argv: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program of this machine to the end."""
    return subprocess.run(argv, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout_s)


@dataclass(frozen=True)
class TierContext:
    """What a tier may use while it plans; nothing here starts anything.

    Args:
        profile: The profile that will be served.
        run_id: Id of the run, for the names of all things that another run might have too.
        scratch: Folder that is removed when the run ends.
        storage_home: Folder on a disk (not tmpfs) below which a stand-in folder may be made.
        tool: Returns the path of a program (`rclone`) of the engine environment; None where it has none.
        port: Returns a TCP port that is leased to this run.
        environ: The environment that credentials are read from.
        call: Runs a program that `tool` named, which may be in an image.
    """

    profile: Profile
    run_id: str
    scratch: Path
    storage_home: Path
    tool: Callable[[str], Path | None]
    port: Callable[[], int]
    environ: Mapping[str, str]
    call: Call = call_here


class Tier(Protocol):
    """A configured tier. Third parties register a class of their own in the group `pytest_kvcache.tiers`."""

    @property
    def name(self) -> str:
        """The table's name in `kvcache.toml`, which `--tier` takes."""

    def label(self, ctx: TierContext) -> str:
        """Return the name for outputs, which says where something stands in for the real storage."""

    def unavailable(self, ctx: TierContext) -> str | None:
        """Return why the tier cannot run here, or None where it can."""

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return what the tier adds to the pair."""


def tier_launcher(tier: Tier) -> str | None:
    """Return the launcher that a tier needs, None where any will do: a kind may have the key `launcher`."""
    name = getattr(tier, "launcher", None)
    return name if isinstance(name, str) else None


@runtime_checkable
class PlacedTier(Protocol):
    """A tier whose pair does not run at one place; its launcher and what is rendered place it alike."""

    def placement(self, here: Place, profile: Profile) -> Placement:
        """Return where each part of a pair runs.

        Args:
            here: This machine.
            profile: Profile with the number of servers.
        """


class CheckedTier(Protocol):
    """A tier with checks of its own; of a kind without this method only the availability is checked."""

    def checks(self, ctx: TierContext) -> Sequence[Check]:
        """Return the checks of the tier as it would run in `ctx`; called only where it can run."""
