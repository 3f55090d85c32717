"""`verdicts.json`: what a session came to, in its run's folder, for reports that are made when the session is over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pytest_kvcache.campaign.gains import GainResult
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.report import rows, terminal
from pytest_kvcache.runs.files import write_json
from pytest_kvcache.verdict.headline import gate_line
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import CellVerdict, Gate, share

NAME = "verdicts.json"
SCHEMA = 1


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class GateFacts(_Lenient):
    """One judged metric of a cell. Shares are positive where it is worse.

    Args:
        metric: Its key.
        label: Its name, with its unit.
        outcome: What it says.
        old: Mean of the baseline, natural unit.
        new: Mean of the session's boots.
        worse_by: How much worse it is.
        low: At least so much.
        high: At most so much.
        margin: What `high` must stay below to pass.
        limit: The value at which it is worse by the margin, natural unit.
        line: All of it in words.
    """

    metric: str
    label: str
    outcome: str
    old: float
    new: float
    worse_by: float
    low: float
    high: float
    margin: float
    limit: float
    line: str


class BaselineBoot(_Lenient):
    """One boot of a baseline.

    Args:
        run_id: The session that it was taken in.
        recorded: Date (UTC).
        figures: Of what is judged by default, by key.
    """

    run_id: str
    recorded: str
    figures: dict[str, float] = Field(default_factory=dict)


class CellFacts(_Lenient):
    """What came of one cell.

    Args:
        label: The tier, as charts name it.
        context_tokens: Length of the user context.
        cell: Profile, tier and context.
        machine: Short name of the hardware.
        status: Of the whole cell.
        outcome: The same for tables, with whether it is suspect.
        reasons: Why.
        notes: What a reader should know besides.
        suspicions: What makes its times doubtful.
        gates: Of every judged metric.
        declared: A line for each exact gate and limit.
        explanation: Where the time went, if something moved.
        loads: Folders of its loads, below the run's.
        baseline: Boots of the baseline before the session.
    """

    label: str
    context_tokens: int
    cell: str
    machine: str
    status: str
    outcome: str
    reasons: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    suspicions: list[str] = Field(default_factory=list)
    gates: list[GateFacts] = Field(default_factory=list)
    declared: list[str] = Field(default_factory=list)
    explanation: list[str] = Field(default_factory=list)
    loads: list[str] = Field(default_factory=list)
    baseline: list[BaselineBoot] = Field(default_factory=list)


class Verdicts(_Lenient):
    """The file.

    Args:
        schema_version: Raised where a key changes its meaning or goes.
        cells: Of the session.
        gains: A line for each gain of a tier over another one.
    """

    schema_version: int = SCHEMA
    cells: list[CellFacts] = Field(default_factory=list)
    gains: list[str] = Field(default_factory=list)


def write(folder: Path, results: Sequence[CellResult], gains: Iterable[GainResult] = ()) -> Path:
    """Write what a session came to and return the file.

    Args:
        folder: Of the run.
        results: All of the session.
        gains: The same.

    Raises:
        OSError: It could not be written.
    """
    lines = [
        f"{g.gain.tier} over {g.gain.over}, context {g.context_tokens}: {g.verdict.status}: {g.line}" for g in gains
    ]
    found = Verdicts(cells=[_cell(folder, result) for result in results], gains=lines)
    write_json(folder / NAME, found.model_dump(mode="json"))
    return folder / NAME


def read(folder: Path) -> Verdicts | None:
    """Return what a session came to; None where it left no such file, or one that cannot be read."""
    try:
        return Verdicts.model_validate_json((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return None


def _cell(folder: Path, result: CellResult) -> CellFacts:
    verdict = result.verdict
    making = rows.making_lines(result, None)
    moved = terminal.explanation(result)
    return CellFacts(
        label=result.label,
        context_tokens=result.context_tokens,
        cell=str(result.cell),
        machine=result.cell.machine,
        status=rows.status(result, None),
        outcome=result.outcome,
        reasons=[*(verdict.reasons if verdict else ()), *result.refused, *making],
        notes=list(verdict.notes) if isinstance(verdict, CellVerdict) else [],
        suspicions=list(result.suspicions),
        gates=[_gate(gate) for gate in (verdict.gates if verdict else ())],
        declared=[f"{rows.status(result, each.gate)}: {each.line}" for each in result.gate_verdicts],
        explanation=moved.split("\n") if moved else [],
        loads=[_below(run.folder, folder) for run in result.runs],
        baseline=[
            BaselineBoot(
                run_id=boot.run_id,
                recorded=boot.recorded,
                figures={m.key: boot.figures[m.key] for m in DEFAULT_METRICS if m.key in boot.figures},
            )
            for boot in (result.stored.boots if result.stored else ())
        ],
    )


def _gate(gate: Gate) -> GateFacts:
    finite: dict[str, Any] = {
        name: share(min(max(getattr(gate, key), -50.0), 50.0))  # a gate without freedom has no bounds, nor has JSON
        for name, key in (("worse_by", "effect"), ("low", "lower"), ("high", "upper"), ("margin", "margin"))
    }
    return GateFacts(
        metric=gate.metric.key,
        label=gate.metric.label,
        outcome=gate.outcome.name.lower().replace("_", " "),
        old=gate.old,
        new=gate.new,
        **finite,
        limit=gate.metric.natural(gate.metric.log(gate.old) + min(gate.margin, 50.0)),
        line=gate_line(gate),
    )


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
