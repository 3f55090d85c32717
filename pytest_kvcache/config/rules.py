"""How a profile is judged: boots, looks, margins (docs/verdicts.md)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pytest_kvcache.strict import Strict
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import BY_NAME, DEFAULT_METRICS, METRICS, Metric

Share = Annotated[float, Field(gt=0, lt=10)]


class Rules(Strict):
    """The rules of the decision; shares are of the better value (0.1 = 10 % more time)."""

    baseline_boots: PositiveInt = Field(default=6, description="boots of a baseline; a gate needs 6")
    looks: int = Field(default=3, ge=1, le=3, description="most boots of one decision")
    margin: Share = Field(default=0.10, description="a change below this may pass; wider where boots spread more")
    margins: dict[str, Share] = Field(default_factory=dict, description="another margin, by metric")
    widest_margin: Share = Field(default=0.50, description="a gate that needs a wider margin cannot pass")
    least_effect: Share = Field(default=0.05, description="a smaller change is never called one")
    canary: bool = Field(
        default=True, description="time a matrix product around each boot and a storage read before it"
    )
    canary_tolerance: Share = Field(default=0.10, description="the machine may be faster or slower by this")
    other_work: Share = Field(
        default=0.10,
        description="a boot is suspect if others, or the hypervisor, took more than this share of the processors",
    )
    adjust_for: Literal["", "matmul_s", "storage_read_s"] = Field(
        default="",
        description="a canary reading, where it is read; what follows the machine's speed by it is no change",
    )
    day_sd: float = Field(default=0.0, ge=0, lt=1, description="sd, on the log scale, of what boots of a day share")
    day_sds: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=dict, description="another `day_sd`, by metric"
    )
    probes: bool = Field(
        default=True, description="look at each boot before its load: cold start, cross-instance hits, integrity"
    )
    logprob_tolerance: float = Field(
        default=0.25,
        gt=0,
        description="answers from a cache may differ in log-probability by this (docs/proof.md)",
    )
    early_stop: bool = Field(default=True, description="end a boot at a whole round once it says enough")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for table, keys in (("margins", self.margins), ("day_sds", self.day_sds)):
            for key in keys:
                if key not in BY_NAME:
                    allowed = ", ".join(metric.key for metric in METRICS)
                    raise ValueError(f"{table}.{key}: unknown metric; allowed: {allowed}")
        self.policy(DEFAULT_METRICS)
        return self

    def policy(self, metrics: tuple[Metric, ...]) -> Policy:
        """Return the rules as the decision takes them, for the metrics that are judged."""
        return Policy(
            margin=self.margin,
            margins={BY_NAME[name].key: margin for name, margin in self.margins.items()},
            widest_margin=max(self.widest_margin, self.margin, *self.margins.values()),
            least_effect=self.least_effect,
            looks=self.looks,
            day_sd=self.day_sd,
            day_sds={BY_NAME[name].key: sd for name, sd in self.day_sds.items()},
            canary_tolerance=self.canary_tolerance,
            adjust_for=self.adjust_for if self.canary else "",
            metrics=metrics,
        )
