"""Options checked against the catalogue: everything a run needs to know before anything boots."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache import catalogue
from pytest_kvcache.catalogue import Catalogue
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.options import Options
from pytest_kvcache.telemetry.hardware import gpus
from pytest_kvcache.tiers.base import Tier

CPU_PROFILE, GPU_PROFILE = "cpu-tiny", "qwen3-8b"


@dataclass(frozen=True)
class Settings:
    """A checked configuration.

    Args:
        options: As they were asked for.
        catalogue: All profiles and tiers.
        profile: The one to run.
        tiers: Those to run, in order.
    """

    options: Options
    catalogue: Catalogue
    profile: Profile
    tiers: tuple[Tier, ...]

    def asked_by_name(self, tier: Tier) -> bool:
        """Whether --tier names it: then it must run, and not be skipped."""
        return tier.name in self.options.tiers


def resolve(options: Options) -> Settings:
    """Read and check all configuration.

    Raises:
        ConfigError: With file or option, key and what is allowed.
    """
    known = catalogue.load(catalogue.find(options.rootdir, options.config))
    default = GPU_PROFILE if gpus() else CPU_PROFILE
    profile = known.profile(options.profile or default)
    profile.workload.check()
    return Settings(
        options=options,
        catalogue=known,
        profile=profile,
        tiers=tuple(known.select(options.tiers)),
    )
