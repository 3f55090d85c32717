"""`kind = "none"`: vLLM alone, the yardstick of every other tier."""

from __future__ import annotations

from typing import Literal

from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers.base import TierModel


class NoTier(TierModel):
    """KV stays in the device cache; what does not fit is computed again."""

    kind: Literal["none"] = "none"

    def plan(self, ctx: TierContext) -> TierPlan:
        """No LMCache, no storage."""
        return TierPlan(label=self.label(ctx), facts={"storage": "none"})
