"""`[profiles.NAME.gates]`: what a profile is gated by beside its comparison with a baseline (docs/verdicts.md)."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from pytest_kvcache.strict import Strict
from pytest_kvcache.verdict.gains import Gain
from pytest_kvcache.verdict.gates import TokenGate
from pytest_kvcache.verdict.limits import AT_LEAST, AT_MOST, OF_SLO, Limit
from pytest_kvcache.verdict.metrics import JUDGED

Bound = Annotated[float, Field(ge=0, le=1e12)]


class ServiceLevel(Strict):
    """What a request has to keep to count as good (goodput, as `vllm bench serve --goodput` counts it)."""

    ttft_s: PositiveFloat | None = Field(default=None, description="most seconds to the first token")
    tpot_s: PositiveFloat | None = Field(default=None, description="most seconds per output token after the first")
    e2el_s: PositiveFloat | None = Field(default=None, description="most seconds to the last token")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.ttft_s is None and self.tpot_s is None and self.e2el_s is None:
            raise ValueError("name at least one of ttft_s, tpot_s and e2el_s")
        return self


Tolerance = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1000)] | Literal["baseline"]
_OVER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._+-]*) over ([A-Za-z0-9_][A-Za-z0-9._+-]*)")


class GainBounds(Strict):
    """What a tier has to bring over another: ratios of their figures, or `"baseline"` for those of the baselines."""

    ttft: Ratio | None = Field(default=None, description="TTFT at most this many times that of the other tier")
    speed: Ratio | None = Field(default=None, description="processing speed at least this many times the other's")
    decode: Ratio | None = Field(default=None, description="decode throughput at least this many times the other's")

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.ttft is None and self.speed is None and self.decode is None:
            raise ValueError("name at least one of ttft, speed and decode")
        return self


class Gates(Strict):
    """Gates beside the comparison with a baseline: exact ones, limits, and gains of a tier over another."""

    tokens: Tolerance | Literal["auto"] | None = Field(
        default=None,
        description="where prompt tokens come from is gated; a source may differ by this share of all of them; auto: 0 "
        "for a workload that sends the same in every boot, and no gate for any other",
    )
    limits: dict[str, Bound] = Field(
        default_factory=dict, description="bounds of figures without a baseline: times at most, rates at least"
    )
    slo: ServiceLevel | None = Field(default=None, description="what goodput_share and goodput_per_s count")

    gains: dict[str, GainBounds] = Field(
        default_factory=dict, description='what a tier brings in the same session, by "TIER over TIER"'
    )

    @field_validator("gains")
    @classmethod
    def _gains_name_two_tiers(cls, value: dict[str, GainBounds]) -> dict[str, GainBounds]:
        for key in value:
            found = _OVER.fullmatch(key)
            if found is None or found.group(1) == found.group(2):
                raise ValueError(f'{key!r} does not name two tiers, such as "pnfs over gpu"')
        return value

    @model_validator(mode="after")
    def _limits_are_known(self) -> Self:
        for key in self.limits:
            if key not in AT_MOST and key not in AT_LEAST:
                raise ValueError(f"limits.{key}: unknown figure; allowed: {', '.join([*AT_MOST, *AT_LEAST])}")
            if key in OF_SLO and self.slo is None:
                raise ValueError(f"limits.{key} needs slo = {{ ttft_s = …, tpot_s = … }} beside it")
            if key.endswith("_share") and self.limits[key] > 1:
                raise ValueError(f"limits.{key}: {self.limits[key]:g} is no share of 0 to 1")
        return self

    def declared(self, *, repeats_exactly: bool) -> tuple[TokenGate | Limit, ...]:
        """Return the exact gate and the limits, which every cell has, in the order in which tests get them.

        Args:
            repeats_exactly: Whether the workload sends the same in every boot.
        """
        tolerance = (0.0 if repeats_exactly else None) if self.tokens == "auto" else self.tokens
        exact = () if tolerance is None else (TokenGate(tolerance),)
        return (*exact, *(Limit(key, bound) for key, bound in self.limits.items()))

    def declared_gains(self) -> tuple[Gain, ...]:
        """Return what tiers have to bring over others, in the order of their declaration."""
        return tuple(
            Gain(tier, over, metric, math.nan if bound == "baseline" else bound)
            for key, bounds in self.gains.items()
            for tier, over in [key.split(" over ")]
            for metric in JUDGED
            if (bound := getattr(bounds, metric.short)) is not None
        )
