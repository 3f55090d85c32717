"""What is measured: an engine with a profile and a tier. One side against a baseline, or two against each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.engine.models import model_folder
from pytest_kvcache.home import home
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.tiers.base import Tier, TierContext


@dataclass(frozen=True)
class Side:
    """One way to serve a tier.

    Args:
        name: For outputs where there are two.
        engine: The environment.
        profile: What is served and how.
        tier: With what.
    """

    name: str
    engine: Engine
    profile: Profile
    tier: Tier

    @cached_property
    def model(self) -> Path | None:
        """Folder of the model, made on the spot where it has to be; None where vLLM finds it by its name."""
        return model_folder(self.profile, self.engine, home())

    @property
    def model_id(self) -> str:
        """The model, with a digest where it was made on the spot."""
        folder = self.model
        return folder.name if folder else self.profile.model

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
        )
