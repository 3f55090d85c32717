"""What a measurement of a tier brought: of one load, and over all boots of a session."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pytest_kvcache.api import requests as tables
from pytest_kvcache.api.figures import Figures
from pytest_kvcache.api.verdict import Verdict, verdict_of
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.verdict.estimate import Goodput, goodput
from pytest_kvcache.verdict.metrics import Metric


@dataclass(frozen=True)
class MeasuredBoot(Figures):
    """One load on one boot of a pair.

    Args:
        figures: As in `Figures`.
        faults: As in `Figures`.
        where: As in `Figures`.
        tier: Name of the tier.
        label: The tier as outputs name it, with what stands in for what.
        context_tokens: Length of the user context.
        folder: Where its requests, facts and, one folder up, the components' logs are.
        suspicions: What makes its times doubtful.
        duration_s: For how long requests were started.
        versions: Of what was tested, by distribution name.
    """

    tier: str
    label: str
    context_tokens: int
    folder: Path
    suspicions: tuple[str, ...]
    duration_s: float
    versions: dict[str, str] = field(repr=False)
    _rows: pd.DataFrame = field(repr=False, compare=False)

    @property
    def boot(self) -> str:
        """Name of the boot: that of its folder (`boot-1`)."""
        return self.folder.parent.name

    @property
    def requests(self) -> pd.DataFrame:
        """A row a request (docs/api.md has the columns); `boot` is 1."""
        return tables.table([self._rows])

    def goodput(
        self, *, ttft_s: float | None = None, tpot_s: float | None = None, e2el_s: float | None = None
    ) -> Goodput:
        """Return which share of the requests, and how many a second, met every limit that is given.

        As `vllm bench serve --goodput` counts it; a request that failed or was never sent meets none.

        Args:
            ttft_s: Most seconds to the first token.
            tpot_s: Most seconds per output token after the first one.
            e2el_s: Most seconds from the send to the last token.

        Raises:
            NotMeasuredError: The run is invalid.
            TypeError: No limit is given.
        """
        return _goodput(self, self._rows, self.duration_s, ttft_s=ttft_s, tpot_s=tpot_s, e2el_s=e2el_s)


@dataclass(frozen=True)
class Result(Figures):
    """One tier at one context length, over all boots that the session took of it.

    Figures are means of the boots' figures, geometric ones where baselines are compared by them. Under `--kv-against`
    they are those of B, the side that is tried.

    Args:
        figures: As in `Figures`.
        faults: As in `Figures`, each with its boot where there are several.
        where: As in `Figures`.
        profile: Name of the profile.
        tier: Name of the tier.
        label: The tier as outputs name it, with what stands in for what.
        context_tokens: Length of the user context.
        boots: What was measured on each, in the order in which they were taken.
        engine_minutes: Minutes for which its pairs ran, those of other contexts of the tier included.
        cell: The plugin's own, no part of the API.
    """

    profile: str
    tier: str
    label: str
    context_tokens: int
    boots: tuple[MeasuredBoot, ...]
    engine_minutes: float
    cell: CellResult = field(repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where the last boot's requests, facts and, one folder up, the components' logs are."""
        return self.boots[-1].folder

    @property
    def requests(self) -> pd.DataFrame:
        """A row a request of all boots (docs/api.md has the columns); `boot` counts from 1 as `boots` are ordered."""
        return tables.table([boot._rows for boot in self.boots])

    @property
    def suspicions(self) -> tuple[str, ...]:
        """What makes the times of a boot doubtful; what all boots have in common is said once."""
        return self.cell.suspicions

    def verdict(self, gate: Metric | None = None) -> Verdict:
        """Return what the comparison came to; `kv_baseline.check(result, gate)` passes or fails a test by it.

        Args:
            gate: What `kv_gate` brings; the whole cell for None.
        """
        return verdict_of(self.cell, gate)

    def goodput(
        self, *, ttft_s: float | None = None, tpot_s: float | None = None, e2el_s: float | None = None
    ) -> Goodput:
        """Return which share of all boots' requests, and how many a second, met every limit that is given.

        As `MeasuredBoot.goodput` does.

        Raises:
            NotMeasuredError: The run is invalid.
            TypeError: No limit is given.
        """
        rows = pd.concat([boot._rows for boot in self.boots], ignore_index=True)
        duration_s = math.fsum(boot.duration_s for boot in self.boots)
        return _goodput(self, rows, duration_s, ttft_s=ttft_s, tpot_s=tpot_s, e2el_s=e2el_s)


def _goodput(figures: Figures, rows: pd.DataFrame, duration_s: float, **limits: float | None) -> Goodput:
    if all(limit is None for limit in limits.values()):
        raise TypeError(f"give at least one limit of {', '.join(limits)}")
    figures.value("scheduled")  # raises where the run is invalid
    return goodput(rows, duration_s=duration_s, **limits)


def measured_boot(run: RunResult) -> MeasuredBoot:
    """Return a load as tests and hooks get it."""
    return MeasuredBoot(
        figures=_finite(run.estimates),
        faults=run.faults,
        where=str(run.folder),
        tier=run.tier,
        label=run.label,
        context_tokens=run.context_tokens,
        folder=run.folder,
        suspicions=run.suspicions,
        duration_s=run.duration_s,
        versions=dict(run.versions),
        _rows=run.rows,
    )


def result_of(cell: CellResult) -> Result:
    """Return a cell as tests and hooks get it."""
    boots = tuple(measured_boot(run) for run in cell.runs)
    named = len(boots) > 1
    return Result(
        figures=_finite(cell.estimates),
        faults=tuple(f"{b.boot}: {fault}" if named else fault for b in boots for fault in b.faults),
        where=str(cell.folder),
        profile=cell.cell.profile,
        tier=cell.cell.tier,
        label=cell.label,
        context_tokens=cell.context_tokens,
        boots=boots,
        engine_minutes=math.fsum(cell.minutes),
        cell=cell,
    )


def _finite(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
