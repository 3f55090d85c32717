"""`[profiles.NAME.gates]`: what a profile is gated by beside its comparison with a baseline (docs/verdicts.md)."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, model_validator

from pytest_kvcache.strict import Strict
from pytest_kvcache.verdict.gates import TokenGate
from pytest_kvcache.verdict.limits import AT_LEAST, AT_MOST, OF_SLO, Limit

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


class Gates(Strict):
    """Gates that decide on one boot: exact ones, and limits."""

    tokens: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="where prompt tokens come from is gated; a source may differ by this share of all of them",
    )
    limits: dict[str, Bound] = Field(
        default_factory=dict, description="bounds of figures without a baseline: times at most, rates at least"
    )
    slo: ServiceLevel | None = Field(default=None, description="what goodput_share and goodput_per_s count")

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

    def declared(self) -> tuple[TokenGate | Limit, ...]:
        """Return the gates, in the order in which tests get them."""
        exact = () if self.tokens is None else (TokenGate(self.tokens),)
        return (*exact, *(Limit(key, bound) for key, bound in self.limits.items()))
