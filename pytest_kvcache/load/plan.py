"""Everything that one load run is told, as one validated document: it goes to the load process as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from pytest_kvcache.load.stopping import StopRule
from pytest_kvcache.strict import Strict
from pytest_kvcache.workload.registry import AnyWorkload

#: Variable with which load processes are given the key of a pair that asks for one.
API_KEY = "KVCACHE_API_KEY"


class LoadPlan(Strict):
    """One workload against one endpoint.

    Args:
        base_url: Address of the endpoint, with /v1.
        turn_urls: Addresses of servers with /v1 over which the client takes turns (`turns.py`), `base_url` the first of
            them; empty where all requests go to `base_url`.
        names_users: Whether each request names its user in `x-user-id`, whatever the workload says.
        model: Name of the model that requests carry.
        workload: The workload with its parameters.
        context_tokens: Length of the user context of this run, one of the workload's.
        first_user: Users are numbered from `first_user + 1` on, so that runs on one boot share no user context.
        tokenizer_url: Address of a vLLM server with that model, without /v1.
        metrics_urls: Prometheus endpoints to read before and after the run, by component.
        api_key_env: Environment variable with the API key; the key itself is in no file.
        extra_body: More fields of each request, of the same size in every boot.
        salt: Makes every prompt new to caches that cannot be emptied; "" for prompts as the workload has them.
        counters_lag_s: How long counters may lag behind what they count (s); they are read so much later.
        report_s: How often progress is printed.
        nodes: Addresses (HOST:PORT) of the load nodes that send; none where this machine does.
        node_key_env: Environment variable with the key that the load nodes know; the key itself is in no file.
        stop: When the run may end before its time; None for never.
        rows: Where the table of requests goes (Parquet).
        summary: Where the JSON of the run's own facts goes.
    """

    base_url: str
    turn_urls: tuple[str, ...] = ()
    names_users: bool = False
    model: str
    workload: AnyWorkload
    context_tokens: PositiveInt
    first_user: NonNegativeInt = 0
    tokenizer_url: str
    metrics_urls: dict[str, str] = Field(default_factory=dict)
    api_key_env: str = ""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    salt: str = ""
    counters_lag_s: float = Field(default=0.0, ge=0)
    report_s: PositiveInt = 30
    nodes: tuple[str, ...] = ()
    node_key_env: str = ""
    stop: StopRule | None = None
    rows: Path
    summary: Path

    @property
    def urls(self) -> tuple[str, ...]:
        """Where requests go."""
        return self.turn_urls or (self.base_url,)
