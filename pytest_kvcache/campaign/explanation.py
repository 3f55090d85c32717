"""Why a cell's TTFT moved: the parts of it, of what it is compared with beside those of now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_kvcache.baselines import store
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.proof.breakdown import Figures, breakdown_of_rows
from pytest_kvcache.proof.explain import Explanation, explain
from pytest_kvcache.verdict import rounds
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.paired import PairedVerdict
from pytest_kvcache.verdict.procedure import CellVerdict

#: Verdicts that say that something moved.
_MOVED = frozenset({"regressed", "improved"})


def against_baseline(
    verdict: CellVerdict | None, stored: StoredCell | None, runs: Sequence[RunResult], root: Path
) -> Explanation | None:
    """Return where the time of a cell went since its baseline; None where nothing moved, or that is not known.

    Where boots ended early, both sides are cut to the rounds of the shortest, as the verdict's are.

    Args:
        verdict: Of the cell.
        stored: Its baseline.
        runs: Of this session.
        root: Folder of the baselines.
    """
    if verdict is None or verdict.status not in _MOVED or stored is None:
        return None
    old: list[Figures] = [boot.figures for boot in stored.boots]
    now: list[Figures] = [run.estimates for run in runs]
    counts = [run.rounds for run in runs if run.rounds is not None]
    if counts and stored.round_s is not None:
        count, round_s = min(counts), stored.round_s
        requests = rounds.prefix(store.read_requests(root, stored), rounds=count, round_s=round_s)
        old = [breakdown_of_rows(figures, requests[requests["boot"] == n]) for n, figures in enumerate(old)]
        cut = (rounds.prefix(run.rows, rounds=count, round_s=round_s) for run in runs)
        now = [breakdown_of_rows(figures, rows) for figures, rows in zip(now, cut, strict=True)]
    return explain(_means(old), _means(now))


def against_arm(verdict: PairedVerdict, a: Sequence[RunResult], b: Sequence[RunResult]) -> Explanation | None:
    """Return where B spends another time than A; None where nothing moved, or that is not known.

    Args:
        verdict: Of B.
        a: Runs of the side that is used now.
        b: Of the other.
    """
    if verdict.status not in _MOVED:
        return None
    return explain(_means([run.estimates for run in a]), _means([run.estimates for run in b]))


def _means(boots: Sequence[Figures]) -> dict[str, float]:
    """Return the mean of each figure over the boots that have it."""
    keys = {key for figures in boots for key in figures}
    having = {key: [figures[key] for figures in boots if key in figures] for key in keys}
    return {key: sum(values) / len(values) for key, values in having.items()}
