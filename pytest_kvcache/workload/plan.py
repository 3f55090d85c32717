"""Everything that one load run is told, as one validated document: it goes to the load process as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from pytest_kvcache.config.profile import Strict, Workload


class LoadPlan(Strict):
    """One workload against one endpoint.

    Args:
        base_url: With /v1.
        model: The name that requests carry.
        workload: Its parameters.
        context_tokens: Length of the user context of this run, one of the workload's.
        first_user: Users are numbered from the one after it, so that runs on one boot share no user context.
        rows: Where the table of requests goes (Parquet).
        summary: Where the JSON of the run's own facts goes.
    """

    base_url: str
    model: str
    workload: Workload
    context_tokens: PositiveInt
    first_user: NonNegativeInt
    rows: Path
    summary: Path
