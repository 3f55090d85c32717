"""A profile: the model, how it is served, the workload and how it is judged, as validated data."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from pytest_kvcache.config import environment, refused_args
from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.config.gates import Gates
from pytest_kvcache.config.image_reference import parse_reference
from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.config.rules import Rules
from pytest_kvcache.config.vllm_args import number_of
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.strict import NonBlank, Strict, as_path
from pytest_kvcache.verdict.cells import FolderName
from pytest_kvcache.verdict.gates import TokenGate
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.limits import Limit
from pytest_kvcache.verdict.metrics import BY_NAME, OF_SECOND_TOKENS, OF_YARDSTICKS, Metric, least_requests
from pytest_kvcache.workload.registry import AnyWorkload

#: Name that asks for the small random-weight Qwen3 made on the spot (`engine/tiny_model.py`).
TINY_MODEL = "tiny-qwen3"
#: vLLM's own block size (tokens), where nothing says another one and the model needs none: its CPU build, and GPUs.
CPU_BLOCK, GPU_BLOCK = 128, 16


class Profile(Strict):
    """A named way to run: what is served, how, and what load it gets."""

    name: FolderName
    description: str = Field(default="", description="what the profile is for, in a line")
    model: NonBlank = Field(description=f"Hugging Face id, a folder, or {TINY_MODEL!r}")
    servers: PositiveInt = Field(default=2, description="vLLM servers behind the balancer")
    gpus_per_server: int = Field(default=1, ge=0, description="0 serves on the CPU")
    dtype: NonBlank = Field(default="auto", description="vLLM's --dtype")
    max_model_len: PositiveInt | None = Field(
        default=None, description="vLLM's --max-model-len (tokens); by default what the model allows"
    )
    device_blocks: PositiveInt | None = Field(
        default=None, description="KV blocks of the device cache (vLLM's --num-gpu-blocks-override)"
    )
    vllm_args: tuple[str, ...] = Field(default=(), description="more arguments of every vLLM server")
    env: dict[str, str] = Field(default_factory=dict, description="environment of vLLM and LMCache")
    image: str | None = Field(
        default=None,
        description="container image with vLLM and LMCache, pinned as NAME@sha256:DIGEST or named by a tag; the digest "
        "that it has is a comparability key. `--kv-engine` and `kv_engine` come over it",
    )
    lmcache_mode: Literal["in-process", "mp"] = Field(
        default="in-process",
        description="LMCache inside vLLM (LMCacheConnectorV1), or a server beside it (LMCacheMPConnector)",
    )
    l1_size_gb: PositiveFloat = Field(default=100, description="CPU RAM of each LMCache (L1)")
    chunk_tokens: PositiveInt = Field(default=256, description="LMCache's chunk size")
    launcher: NonBlank | None = Field(
        default=None,
        description="what boots the servers; by default `process`, and `docker` where the engine is an image",
    )
    balancer: Balancer = Field(default=Balancer(), description="what stands in front of the servers")
    ray: RaySettings | None = Field(default=None, description="the cluster of launcher `ray`")
    boot_timeout_s: PositiveFloat = Field(default=900, description="time in which the whole pair must be ready")
    workload: AnyWorkload = Field(description="what is sent; its keys depend on its `kind`")
    rules: Rules = Field(default=Rules(), description="how a change is judged")
    gates: Gates = Field(default=Gates(), description="what is judged")

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        longest = self.workload.longest_tokens()
        if longest is not None and self.max_model_len is not None and longest > self.max_model_len:
            raise ValueError(
                f"max_model_len {self.max_model_len} is less than the longest prompt with its answer, {longest} tokens"
            )
        return self

    @model_validator(mode="after")
    def _gates_can_be_told(self) -> Self:
        if self.gates.tokens == 0 and not self.workload.repeats_exactly:
            raise ValueError(
                f"gates.tokens = 0 asks for the same tokens in every boot, and workload {self.workload.kind} does not "
                "send the same in every boot; give the share of the tokens that may differ, such as 0.05"
            )
        count = self.workload.requests()
        told = [
            *((f"limits.{key}", key) for key in self.gates.limits),
            *((f"metrics: {m.key}", m.key) for m in self.judged),
        ]
        told += [(f"gains.{g.tier} over {g.over}: {g.metric.key}", g.metric.key) for g in self.gates.declared_gains()]
        for where, key in told:
            if key.startswith(OF_SECOND_TOKENS) and not self.workload.decodes:
                raise ValueError(f"gates.{where}: answers of one token have none; leave it out, or ask for longer ones")
            needed = least_requests(key)
            if count is not None and 0 < count < needed:
                longer = self.workload.duration_s * needed / count
                raise ValueError(
                    f"gates.{where}: a run of {count} requests says nothing of it; it needs {needed}, "
                    f"workload.duration_s = {math.ceil(longer)} at this rate"
                )
        return self

    @field_validator("model")
    @classmethod
    def _folder_as_written(cls, value: str, info: ValidationInfo) -> str:
        # Anything else may be the name of a model.
        return str(as_path(value, info)) if value.startswith(("~", "$", "./", "../")) else value

    @field_validator("image")
    @classmethod
    def _image_is_a_name(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_reference(value, where="image")
            except ConfigError as error:
                raise ValueError(error.what) from None
        return value

    @field_validator("vllm_args")
    @classmethod
    def _arguments_are_free(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if found := list(refused_args.refusals(value)):
            raise ValueError("; ".join(found))
        return value

    @field_validator("env")
    @classmethod
    def _variables_are_free(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in value if not name or set(name) & {"=", "\0"}]:
            raise ValueError(f"{wrong[0]!r} is no name of a variable")
        if found := [f"{name} is not allowed: {reason}" for name, reason in environment.refusals(value)]:
            raise ValueError("; ".join(found))
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        found = [*self._parallel(), *self._chunks()]
        if self.rules.probes:
            found += [f"vllm_args: {line}" for line in refused_args.beside_probes(self.vllm_args)]
        if found:
            raise ValueError("; ".join(found))
        return self

    def _parallel(self) -> list[str]:
        written = self._written_ranks()
        if self.gpus_per_server == 0 or written is None or written == self.gpus_per_server:
            return []
        return [
            f"gpus_per_server: {self.gpus_per_server}, and vllm_args ask for {written} (--tensor-parallel-size times "
            f"--pipeline-parallel-size); set gpus_per_server = {written}, or leave the sizes out"
        ]

    def _chunks(self) -> list[str]:
        block = number_of(self.vllm_args, "--block-size", 0)
        if not block or self.chunk_tokens % block == 0:
            return []
        return [
            f"chunk_tokens: {self.chunk_tokens} is no whole number of blocks of {block} tokens (--block-size in "
            "vllm_args); LMCache stores whole blocks"
        ]

    def _written_ranks(self) -> int | None:
        """Return the workers that `vllm_args` ask for, None where they say nothing of it."""
        names = ("--tensor-parallel-size", "--pipeline-parallel-size", "--prefill-context-parallel-size")
        sizes = [number_of(self.vllm_args, name, 0) for name in names]
        return math.prod(size or 1 for size in sizes) if any(sizes) else None

    @model_validator(mode="after")
    def _balancer_fits(self) -> Self:
        ports = self.balancer.server_ports
        if ports and len(ports) != self.servers:
            raise ValueError(f"balancer.server_ports: {len(ports)} ports for {self.servers} servers")
        return self

    @model_validator(mode="after")
    def _yardsticks_are_there(self) -> Self:
        named = (
            {m.key for m in self.judged} | {g.metric.key for g in self.gates.declared_gains()} | {*self.gates.limits}
        )
        if (wanted := sorted(named & OF_YARDSTICKS)) and not self.workload.yardstick_count:
            raise ValueError(
                f"gates: {wanted[0]} needs requests that no cache can have: set workload.yardsticks, as to 6"
            )
        return self

    @model_validator(mode="after")
    def _margins_are_of_what_is_judged(self) -> Self:
        keys = {metric.key for metric in self.judged}
        for name in self.rules.margins:
            if BY_NAME[name].key not in keys:
                raise ValueError(
                    f"rules.margins.{name}: gates.metrics does not name it; judged: {', '.join(sorted(keys))}"
                )
        return self

    @property
    def judged(self) -> tuple[Metric, ...]:
        """What is compared with a baseline, in the order of tables."""
        return self.gates.judged(decodes=self.workload.decodes, yardsticks=self.workload.yardstick_count > 0)

    @property
    def policy(self) -> Policy:
        """The rules of the decision."""
        return self.rules.policy(self.judged)

    @property
    def declared_gates(self) -> tuple[TokenGate | Limit, ...]:
        """The exact gate and the limits of every cell, in the order in which tests get them."""
        return self.gates.declared(repeats_exactly=self.workload.repeats_exactly)

    @property
    def ranks(self) -> int:
        """Worker processes of each vLLM server: as `vllm_args` say, else one on each of its GPUs."""
        return self._written_ranks() or max(self.gpus_per_server, 1)

    @property
    def block_tokens(self) -> int:
        """VLLM's block size (tokens): as `vllm_args` say, else its own for the device."""
        return number_of(self.vllm_args, "--block-size", GPU_BLOCK if self.gpus_per_server else CPU_BLOCK)

    def server_port(self, index: int) -> int | None:
        """Return the port of the `index`-th server where a balancer that runs already must know it, else None."""
        return self.balancer.server_ports[index] if self.balancer.server_ports else None

    def with_vllm_args(self, more: tuple[str, ...]) -> Self:
        """Return the profile with more arguments for vLLM, which a run itself gives."""
        return self.model_copy(update={"vllm_args": (*self.vllm_args, *more)}) if more else self

    @property
    def tensor_parallel_args(self) -> tuple[str, ...]:
        """What has a server use all of its GPUs where `vllm_args` say nothing of it."""
        if self.gpus_per_server <= 1 or self._written_ranks() is not None:
            return ()
        return ("--tensor-parallel-size", str(self.gpus_per_server))

    @property
    def served_name(self) -> str:
        """The name that requests use."""
        return self.model
