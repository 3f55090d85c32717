"""`kind = "none"`: vLLM alone, against which every other tier is measured."""

from __future__ import annotations

from typing import Literal

from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers.base import TierModel


class NoTier(TierModel):
    """The tier without offloading: KV stays in the device cache, and KV that does not fit is computed again."""

    kind: Literal["none"] = "none"

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return a plan without LMCache and storage."""
        return TierPlan(label=self.label(ctx), facts={"storage": "none"})
