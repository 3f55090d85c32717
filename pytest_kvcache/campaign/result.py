"""All that a session measured in one cell, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from pytest_kvcache.baselines.store import Write
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.proof.explain import Explanation
from pytest_kvcache.verdict.cells import Cell, StoredCell
from pytest_kvcache.verdict.estimate import Estimates
from pytest_kvcache.verdict.gates import GateVerdict
from pytest_kvcache.verdict.in_the_making import InTheMaking
from pytest_kvcache.verdict.metrics import METRICS
from pytest_kvcache.verdict.paired import PairedVerdict
from pytest_kvcache.verdict.procedure import Boot, CellVerdict

_COUNTS = frozenset({"scheduled", "sent", "finished", "failed", "prompt_tokens", "generated_tokens"})
_GEOMETRIC = frozenset(metric.key for metric in METRICS)


@dataclass(frozen=True)
class CellResult:
    """One tier at one context length, over the boots of a session.

    Args:
        cell: Which.
        runs: One a boot.
        boots: The same, as the decision sees them.
        minutes: Engine minutes of each boot, shared with the tier's other contexts; of each pair of boots in an A/B.
        stored: The baseline before this session.
        verdict: The decision; None where the cell was only recorded.
        write: What is to become the baseline, None where nothing is.
        refused: Why nothing is, although it was asked for.
        explanation: Where the time went, if the verdict says that something moved.
        gate_verdicts: What exact gates and limits came to, in the order of their declaration.
        making: What was recorded beside the boots that the baseline already had; None where it had none, and where it
            was not added to.
    """

    cell: Cell
    runs: tuple[RunResult, ...]
    boots: tuple[Boot, ...]
    minutes: tuple[float, ...]
    stored: StoredCell | None = None
    verdict: CellVerdict | PairedVerdict | None = None
    write: Write | None = None
    refused: tuple[str, ...] = field(default=())
    explanation: Explanation | None = None
    gate_verdicts: tuple[GateVerdict, ...] = ()
    making: InTheMaking | None = None

    @property
    def label(self) -> str:
        """The tier's name for outputs, with what stood in for what."""
        return self.runs[0].label

    @property
    def context_tokens(self) -> int:
        """Length of the user context."""
        return self.cell.context_tokens

    @property
    def folder(self) -> Path:
        """Where the last boot's rows, facts and logs are."""
        return self.runs[-1].folder

    @property
    def rows(self) -> pd.DataFrame:
        """A row a request of all boots; `boot` counts from 0."""
        return pd.concat([run.rows.assign(boot=number) for number, run in enumerate(self.runs)], ignore_index=True)

    @property
    def suspicions(self) -> tuple[str, ...]:
        """What makes the times of a boot doubtful; what all boots have in common is said once."""
        return tuple(dict.fromkeys(line for run in self.runs for line in run.suspicions))

    @property
    def estimates(self) -> Estimates:
        """The figures over all boots: counts added up, what is judged as geometric mean, the rest as mean."""
        figures: Estimates = {}
        for key in {key for run in self.runs for key in run.estimates}:
            values = np.array([run.estimates[key] for run in self.runs if key in run.estimates])
            if key in _COUNTS:
                figures[key] = float(values.sum())
            elif key in _GEOMETRIC and (values > 0).all():
                figures[key] = float(np.exp(np.log(values).mean()))
            else:
                figures[key] = float(values.mean())
        return figures

    @property
    def status(self) -> str:
        """What came of the whole cell: `updated` is a baseline whose boots were replaced."""
        if self.write is not None:
            return "recorded" if self.stored is None or self.making is not None else "updated"
        if self.refused:
            return "refused"
        return self.verdict.status if self.verdict else "measured"

    @property
    def outcome(self) -> str:
        """One word for tables."""
        word = self.status
        return f"{word}, suspect" if self.suspicions else word
