"""What is measured: an engine with a profile and a tier. One side against a baseline, or two against each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.deployment.standing import Standing
from pytest_kvcache.engine.attached import AttachedEngine
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.engine.models import model_folder
from pytest_kvcache.home import home
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.serving.launchers.attach import AttachLauncher
from pytest_kvcache.serving.launchers.base import Launch, Launcher
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.tier import Tier, TierContext, tier_launcher
from pytest_kvcache.telemetry.allotment import allotment


@dataclass(frozen=True)
class Arm:
    """One way to serve a tier.

    Args:
        name: For outputs where there are two.
        engine: A folder's, or an image's.
        profile: What is served and how.
        tier: With what.
    """

    name: str
    engine: BaseEngine
    profile: Profile
    tier: Tier

    @cached_property
    def model(self) -> Path | None:
        """Folder of the model, made on the spot where it has to be; None where vLLM finds it by its name."""
        return None if self.standing is not None else model_folder(self.profile, self.engine, home())

    @property
    def model_id(self) -> str:
        """The model, with a digest where it was made on the spot."""
        folder = self.model
        return folder.name if folder else self.profile.model

    @property
    def launched_by(self) -> str:
        """How its servers run: the launcher's name, as `process` or `docker`."""
        if self.standing is not None:
            return AttachLauncher.name
        return launchers.chosen(tier_launcher(self.tier) or self.profile.launcher, self.engine)

    @property
    def pinned_image(self) -> str:
        """The digest of the image that the profile names; "" where the engine comes from elsewhere."""
        if isinstance(self.engine, ImageEngine) and self.engine.reference == self.profile.image:
            return self.engine.digest
        return ""

    def __str__(self) -> str:
        """The engine, how it runs, and what is in it."""
        versions = ", ".join(f"{name} {version}" for name, version in self.engine.versions.items())
        return f"{self.engine.where} ({self.launched_by}): {versions}"

    @property
    def standing(self) -> Standing | None:
        """The deployment that serves it, None where a pair is booted."""
        return self.engine.standing if isinstance(self.engine, AttachedEngine) else None

    def tier_plan(self, run: RunSession, boot: str) -> TierPlan:
        """Return the tier's plan for a boot; of a deployment only its claim holds here.

        Args:
            run: The present one.
            boot: Names the boot.
        """
        if self.standing is None:
            return self.tier.plan(self.context(run, boot))
        meant = self.tier.plan(replace(self.context(run, boot), port=lambda: 0))
        label = f"{self.tier.name} (attached: {self.standing.settings.name})"
        return TierPlan(label=label, claims=meant.claim)

    def launcher(
        self, run: RunSession, tier_plan: TierPlan, say: Callable[[str], None], folder: Path | None
    ) -> Launcher:
        """Return what boots its servers.

        Args:
            run: The present one.
            tier_plan: With what storage.
            say: Writes a line to the terminal.
            folder: Folder of the project's `kvcache.toml`, which may have a launcher of its own.

        Raises:
            ConfigError: The launcher does not fit the engine.
        """
        launch = Launch(run, self.engine, self.profile, tier_plan, self.model, allotment(os.environ), say, self.tier)
        return launchers.make(self.launched_by, launch, folder)

    def context(self, run: RunSession, boot: str) -> TierContext:
        """Return what the tier may use while it plans.

        Args:
            run: The present one.
            boot: Names the boot: each has storage of its own, and so starts cold.
        """
        return TierContext(
            profile=self.profile,
            run_id=f"{run.id}-{boot}" if boot else run.id,
            scratch=run.scratch,
            storage_home=run.storage_home,
            tool=self.engine.find,
            port=run.ports.take,
            environ=os.environ,
            call=self.engine.call,
        )
