"""A profile: the model, how it is served, the workload and the tolerances, as validated data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

#: Name that asks for the small random-weight Qwen3 made on the spot (`engine/tiny_model.py`).
TINY_MODEL = "tiny-qwen3"

Share = Annotated[float, Field(gt=0, lt=10)]


class Strict(BaseModel):
    """Base of all settings: unknown keys are errors and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Workload(Strict):
    """Parameters of the multi-round QA workload.

    The names of LMCache's `multi-round-qa.py` in brackets.
    """

    users: PositiveInt = Field(description="users in the system at a time [--num-users]")
    rounds: int = Field(ge=2, description="questions a user asks [--num-rounds]")
    qps: PositiveFloat = Field(description="requests/s over all users [--qps]")
    shared_prompt_tokens: int = Field(ge=0, description="prompt common to all [--shared-system-prompt]")
    context_tokens: tuple[PositiveInt, ...] = Field(
        min_length=1, description="lengths of the user context, one test each [--user-history-prompt]"
    )
    answer_tokens: PositiveInt = Field(description="length of an answer [--answer-len]")
    duration_s: PositiveFloat = Field(description="no request is started later than this [--time]")
    warmup_requests: int = Field(default=10, ge=0, description="requests sent before the clock starts")
    ignore_eos: bool = Field(default=False, description="answers have exactly answer_tokens; random weights need it")
    request_timeout_s: PositiveFloat = Field(default=300, description="a request is failed after this")
    send_late_budget_s: PositiveFloat = Field(
        default=0.05, description="a run whose requests left later than this (p99, the client's fault) is invalid"
    )
    allowed_failures: NonNegativeFloat = Field(
        default=0.0, le=1, description="share of failed requests that a verdict may rest on"
    )


class Tolerances(Strict):
    """By how much of the stored value a metric may be worse (0.1 = 10 %)."""

    ttft_mean_s: Share = 0.10
    ttft_p90_s: Share = 0.15
    requests_per_s: Share = 0.05
    tokens_per_s: Share = 0.05
    decode_tokens_per_s: Share = 0.10


class Profile(Strict):
    """A named way to run: what is served, how, and what load it gets."""

    name: str
    description: str = ""
    model: str = Field(description=f"Hugging Face id, a folder, or {TINY_MODEL!r}")
    servers: PositiveInt = Field(default=2, description="vLLM servers behind the router")
    gpus_per_server: int = Field(default=1, ge=0, description="0 serves on the CPU")
    dtype: str = "auto"
    max_model_len: PositiveInt | None = None
    device_blocks: PositiveInt | None = Field(
        default=None, description="KV blocks of the device cache (vLLM's --num-gpu-blocks-override)"
    )
    vllm_args: tuple[str, ...] = Field(default=(), description="more arguments of every vLLM server")
    env: dict[str, str] = Field(default_factory=dict, description="environment of vLLM and LMCache")
    lmcache_mode: Literal["in-process", "mp"] = Field(
        default="in-process",
        description="LMCache inside vLLM (LMCacheConnectorV1), or a server beside it (LMCacheMPConnector)",
    )
    l1_size_gb: PositiveFloat = Field(default=100, description="CPU RAM of each LMCache (L1)")
    chunk_tokens: PositiveInt = Field(default=256, description="LMCache's chunk size")
    boot_timeout_s: PositiveFloat = 900
    workload: Workload
    tolerance: Tolerances = Tolerances()

    @property
    def served_name(self) -> str:
        """The name that requests use."""
        return self.model
