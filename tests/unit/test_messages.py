"""The words of tests whose verdict does not succeed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.report import terminal
from pytest_kvcache.verdict.in_the_making import SPREADS_TOO_FAR
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import decide
from tests.unit.verdict.make import CELL, FAMILY, boot, evidence, stored


@pytest.mark.parametrize(
    ("sd", "boots", "took", "step"), [(0.3, 1, "1 boot", True), (0.3, 2, "2 boots", True), (0.03, 3, "3 boots", False)]
)
def test_an_undecided_gate_says_what_it_took_and_what_helps(sd: float, boots: int, took: str, step: bool) -> None:
    """Where a baseline spreads too far for a gate, the message ends with what to do about that baseline."""
    baseline = stored(sd=sd)
    seen = tuple(boot(0.09) for _ in range(boots))
    verdict = decide(evidence(*seen), baseline, family=FAMILY)
    assert verdict.status == "inconclusive"
    run = cast("RunResult", SimpleNamespace(label="pnfs (stand-in: ext4)", folder=Path("runs/1")))
    result = CellResult(CELL, (run,) * boots, seen, (1.0,) * boots, stored=baseline, verdict=verdict)
    said = terminal.failure(result, DEFAULT_METRICS[0], refresh="pytest --update-baselines", others=())
    assert said.startswith(f"{CELL} on pnfs (stand-in: ext4) is inconclusive after {took}: TTFT (s)")
    assert ("may pass" in said) is step
    assert said.endswith(SPREADS_TOO_FAR if step else "rows, counters and logs: runs/1")
