"""`kind = "cpu"`: LMCache keeps KV in each server's CPU RAM (L1)."""

from __future__ import annotations

from typing import Literal

from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers.base import TierModel


class CpuTier(TierModel):
    """The tier with CPU RAM only: the servers share nothing."""

    kind: Literal["cpu"] = "cpu"

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return a plan with L1 and no L2."""
        return TierPlan(label=self.label(ctx), offload=Offload(), facts={"storage": "cpu-ram"})
