"""A profile: the model, how it is served, the workload and how it is judged, as validated data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pytest_kvcache.config.rules import Rules
from pytest_kvcache.config.strict import Strict
from pytest_kvcache.workload.registry import AnyWorkload

#: Name that asks for the small random-weight Qwen3 made on the spot (`engine/tiny_model.py`).
TINY_MODEL = "tiny-qwen3"


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
    workload: AnyWorkload
    rules: Rules = Rules()

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        longest = self.workload.longest_tokens()
        if longest is not None and self.max_model_len is not None and longest > self.max_model_len:
            raise ValueError(
                f"max_model_len {self.max_model_len} is less than the longest prompt with its answer, {longest} tokens"
            )
        return self

    @property
    def ranks(self) -> int:
        """Worker processes of each vLLM server: tensor parallel times pipeline parallel size."""
        return _size(self.vllm_args, "--tensor-parallel-size", "-tp") * _size(
            self.vllm_args, "--pipeline-parallel-size", "-pp"
        )

    @property
    def served_name(self) -> str:
        """The name that requests use."""
        return self.model


def _size(argv: tuple[str, ...], *spellings: str) -> int:
    for index, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name in spellings:
            text = value or "".join(argv[index + 1 : index + 2])
            return int(text) if text.isdigit() else 1
    return 1
