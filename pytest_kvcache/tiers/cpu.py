"""`kind = "cpu"`: LMCache keeps KV in each server's CPU RAM (L1)."""

from __future__ import annotations

from typing import Literal

from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers.base import TierModel


class CpuTier(TierModel):
    """CPU RAM only: nothing is shared between the servers."""

    kind: Literal["cpu"] = "cpu"

    def plan(self, ctx: TierContext) -> TierPlan:
        """LMCache with L1 and no L2."""
        return TierPlan(label=self.label(ctx), offload=Offload(), facts={"storage": "cpu-ram"})
