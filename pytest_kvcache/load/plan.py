"""Everything that one load run is told, as one validated document: it goes to the load process as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from pytest_kvcache.load.stopping import StopRule
from pytest_kvcache.strict import Strict
from pytest_kvcache.workload.registry import AnyWorkload


class LoadPlan(Strict):
    """One workload against one endpoint.

    Args:
        base_url: Address of the endpoint, with /v1.
        model: Name of the model that requests carry.
        workload: The workload with its parameters.
        context_tokens: Length of the user context of this run, one of the workload's.
        first_user: Users are numbered from `first_user + 1` on, so that runs on one boot share no user context.
        tokenizer_url: Address of a vLLM server with that model, without /v1.
        metrics_urls: Prometheus endpoints to read before and after the run, by component.
        api_key_env: Environment variable with the API key; the key itself is in no file.
        extra_body: More fields of each request, of the same size in every boot.
        report_s: How often progress is printed.
        nodes: Addresses (HOST:PORT) of the load nodes that send; none where this machine does.
        node_key_env: Environment variable with the key that the load nodes know; the key itself is in no file.
        stop: When the run may end before its time; None for never.
        rows: Where the table of requests goes (Parquet).
        summary: Where the JSON of the run's own facts goes.
    """

    base_url: str
    model: str
    workload: AnyWorkload
    context_tokens: PositiveInt
    first_user: NonNegativeInt = 0
    tokenizer_url: str
    metrics_urls: dict[str, str] = Field(default_factory=dict)
    api_key_env: str = ""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    report_s: PositiveInt = 30
    nodes: tuple[str, ...] = ()
    node_key_env: str = ""
    stop: StopRule | None = None
    rows: Path
    summary: Path
