"""What the measurement of a tier returns: the figures of one load, or over all boots of a session."""

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
        label: The tier's name in outputs, which also says what stands in for a missing mount.
        context_tokens: Length of the user context (tokens).
        folder: Folder with the load's requests and facts; the components' logs are one folder up.
        suspicions: Reasons to doubt the load's times.
        duration_s: For how long requests were started (s).
        versions: Versions of the software under test, by distribution name.
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
        """Name of the boot, which is that of its folder (`boot-1`)."""
        return self.folder.parent.name

    @property
    def requests(self) -> pd.DataFrame:
        """The load's requests, one row for each (docs/api.md describes the columns); `boot` is 1."""
        return tables.table([self._rows])

    def goodput(
        self, *, ttft_s: float | None = None, tpot_s: float | None = None, e2el_s: float | None = None
    ) -> Goodput:
        """Return which share of the requests, and how many per second, met every limit that is given.

        They are counted as by `vllm bench serve --goodput`; a request that failed or was never sent meets no limit.

        Args:
            ttft_s: Longest time from the send to the first token (s).
            tpot_s: Longest time per output token after the first one (s).
            e2el_s: Longest time from the send to the last token (s).

        Raises:
            NotMeasuredError: The run is invalid.
            TypeError: No limit is given.
        """
        return _goodput(self, self._rows, self.duration_s, ttft_s=ttft_s, tpot_s=tpot_s, e2el_s=e2el_s)


@dataclass(frozen=True)
class Result(Figures):
    """One tier at one context length, over all boots of the tier that the session took.

    Figures are means over the boots, geometric means for the metrics that are compared with a baseline. Under
    `--kv-against` they are the figures of B, the new engine.

    Args:
        figures: As in `Figures`.
        faults: As in `Figures`; each names its boot where there are several boots.
        where: As in `Figures`.
        profile: Name of the profile.
        tier: Name of the tier.
        label: The tier's name in outputs, which also says what stands in for a missing mount.
        context_tokens: Length of the user context (tokens).
        boots: The load on each boot, in the order in which the boots were taken.
        engine_minutes: Minutes for which the tier's pairs ran, including their time for its other contexts.
        cell: Internal to the plugin and no part of the API.
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
        """Folder with the last boot's requests and facts; the components' logs are one folder up."""
        return self.boots[-1].folder

    @property
    def requests(self) -> pd.DataFrame:
        """All boots' requests, one row for each (docs/api.md describes the columns); `boot` counts `boots` from 1."""
        return tables.table([boot._rows for boot in self.boots])

    @property
    def suspicions(self) -> tuple[str, ...]:
        """Reasons to doubt the times of a boot; a reason that several boots share is listed once."""
        return self.cell.suspicions

    def verdict(self, gate: Metric | None = None) -> Verdict:
        """Return the verdict of the comparison; `kv_baseline.check(result, gate)` passes or fails a test by it.

        Args:
            gate: The metric that `kv_gate` gives; None judges all metrics of the cell.
        """
        return verdict_of(self.cell, gate)

    def goodput(
        self, *, ttft_s: float | None = None, tpot_s: float | None = None, e2el_s: float | None = None
    ) -> Goodput:
        """Return which share of all boots' requests, and how many per second, met every limit that is given.

        The limits are those of `MeasuredBoot.goodput`.

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
    """Return a load in the form that tests and hooks get."""
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
    """Return a cell's result in the form that tests and hooks get."""
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
