"""`[profiles.NAME.gates]`: what a profile is gated by beside its comparison with a baseline (docs/verdicts.md)."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

import pandas as pd
from pydantic import Field, PositiveFloat, field_validator, model_validator

from pytest_kvcache.strict import Strict
from pytest_kvcache.verdict.estimate import goodput
from pytest_kvcache.verdict.gains import Gain
from pytest_kvcache.verdict.gates import TokenGate
from pytest_kvcache.verdict.limits import AT_LEAST, AT_MOST, Limit
from pytest_kvcache.verdict.metrics import BY_NAME, DEFAULT_METRICS, METRICS, OF_SLO, Metric

Bound = Annotated[float, Field(ge=0, le=1e12)]


class ServiceLevel(Strict):
    """What a request has to keep to count as good (goodput, as `vllm bench serve --goodput` counts it)."""

    ttft_s: PositiveFloat | None = Field(default=None, description="most seconds to the first token")
    tpot_s: PositiveFloat | None = Field(default=None, description="most seconds per output token after the first")
    e2el_s: PositiveFloat | None = Field(default=None, description="most seconds to the last token")

    def figures(self, rows: pd.DataFrame, *, duration_s: float) -> dict[str, float]:
        """Return what of a load met these limits.

        Args:
            rows: A row a request, as `load.records` has it.
            duration_s: For how long requests were started.
        """
        good = goodput(rows, duration_s=duration_s, ttft_s=self.ttft_s, tpot_s=self.tpot_s, e2el_s=self.e2el_s)
        return {"goodput_share": good.share, "goodput_per_s": good.per_s}

    @property
    def text(self) -> str:
        """The limits as one line, which is a comparability key."""
        return ", ".join(f"{name} {value:g}" for name, value in self.model_dump().items() if value is not None)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.ttft_s is None and self.tpot_s is None and self.e2el_s is None:
            raise ValueError("name at least one of ttft_s, tpot_s and e2el_s")
        return self


Tolerance = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1000)] | Literal["baseline"]
_OVER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._+-]*) over ([A-Za-z0-9_][A-Za-z0-9._+-]*)")


def _metrics_of(where: str, names: tuple[str, ...]) -> None:
    """Raise ValueError unless each name is that of a metric, and each metric is named once."""
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"{where}: unknown metric {name!r}; allowed: {_names(METRICS)}")
    keys = [BY_NAME[name].key for name in names]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"{where}: {twice} is there twice")


def _names(metrics: tuple[Metric, ...]) -> str:
    return ", ".join(metric.short for metric in metrics)


class Gates(Strict):
    """Gates beside the comparison with a baseline: exact ones, limits, and gains of a tier over another."""

    metrics: tuple[str, ...] = Field(
        default=(),
        description="what is compared with a baseline; by default TTFT, processing speed and, where answers have more "
        "than one token, decode throughput",
    )
    tokens: Tolerance | Literal["auto"] | None = Field(
        default=None,
        description="where prompt tokens come from is gated; a source may differ by this share of all of them; auto: 0 "
        "for a workload that sends the same in every boot, and no gate for any other",
    )
    limits: dict[str, Bound] = Field(
        default_factory=dict, description="bounds of figures without a baseline: times at most, rates at least"
    )
    slo: ServiceLevel | None = Field(default=None, description="what goodput_share and goodput_per_s count")

    gains: dict[str, dict[str, Ratio]] = Field(
        default_factory=dict,
        description='what a tier brings in the same session, by "TIER over TIER" and metric: times at most, rates at '
        'least this many times those of the other tier, or "baseline" for the ratio of the baselines',
    )

    @field_validator("gains")
    @classmethod
    def _gains_name_two_tiers(cls, value: dict[str, dict[str, Ratio]]) -> dict[str, dict[str, Ratio]]:
        for key, bounds in value.items():
            found = _OVER.fullmatch(key)
            if found is None or found.group(1) == found.group(2):
                raise ValueError(f'{key!r} does not name two tiers, such as "pnfs over gpu"')
            if not bounds:
                raise ValueError(f"{key}: name at least one metric, such as {_names(DEFAULT_METRICS)}")
            _metrics_of(key, tuple(bounds))
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _metrics_of("metrics", value)
        return value

    @model_validator(mode="after")
    def _slo_is_there(self) -> Self:
        named = {BY_NAME[name].key for names in (self.metrics, *self.gains.values()) for name in names}
        if (wanted := sorted(named & OF_SLO)) and self.slo is None:
            raise ValueError(f"{wanted[0]} needs slo = {{ ttft_s = …, tpot_s = … }} beside it")
        return self

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
            for name, bound in bounds.items()
            for metric in [BY_NAME[name]]
        )

    def judged(self, *, decodes: bool, yardsticks: bool) -> tuple[Metric, ...]:
        """Return what is compared with a baseline, in the order of tables.

        Where there are yardsticks, TTFT is judged as its two parts, cold prefill and hits over it: the speed of the
        machine is in the first alone. That of decoding is in no part of its own, so that it is not judged.

        Args:
            decodes: Whether answers have more than one token.
            yardsticks: Whether the workload has requests that no cache can have.
        """
        if self.metrics:
            return tuple(BY_NAME[name] for name in self.metrics)
        if yardsticks:
            return tuple(BY_NAME[name] for name in ("tier", "compute", "speed"))
        return tuple(metric for metric in DEFAULT_METRICS if decodes or metric.key != "decode_tokens_per_s")
