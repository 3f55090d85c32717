"""Plans of pairs that run on one place, for tests of what is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.places import EngineTools, Place, all_at
from pytest_kvcache.serving.plan import ServingPlan, build_plan


def planned_here(
    profile: Profile, tier: TierPlan, tools: EngineTools, *, port: Callable[[], int], scratch: Path
) -> ServingPlan:
    """Return the plan of a pair on this machine, of a model `m`."""
    return build_plan(profile, tier, all_at(Place(tools=tools, model="m", port=port, scratch=scratch), profile))
