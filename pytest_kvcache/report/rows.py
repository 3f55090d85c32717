"""What a report knows of one cell."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache.load.runner import RunResult
from pytest_kvcache.verdict.baseline import Baseline, Cell
from pytest_kvcache.verdict.decide import Verdict


@dataclass(frozen=True)
class CellReport:
    """One measured cell and what was made of it.

    Args:
        cell: Which.
        result: What was measured.
        verdict: The decision; None where the test did not ask for one.
        stored: The baseline before this run.
        written: Whether this run's figures are to become the baseline.
    """

    cell: Cell
    result: RunResult
    verdict: Verdict | None = None
    stored: Baseline | None = None
    written: bool = False

    @property
    def outcome(self) -> str:
        """One word for tables."""
        word: str = self.verdict.status if self.verdict else "measured"
        if self.written:
            word = "recorded" if self.stored is None else "updated"
        return f"{word}, suspect" if self.result.suspicions else word
