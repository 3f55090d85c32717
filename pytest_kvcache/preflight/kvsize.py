"""How much KV a workload stores in one boot, from the model's dimensions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.config.profile import TINY_MODEL, Profile
from pytest_kvcache.config.vllm_args import kv_dtype

_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
#: Dimensions of models of the built-in profiles, which may not be on this machine yet (from config.json on the Hub).
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-8B": {"num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128, "dtype": "bfloat16"},
    # The source of these is engine/tiny_model.py.
    TINY_MODEL: {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 64, "dtype": "float32"},
}


@dataclass(frozen=True)
class Stored:
    """The most that one boot writes; its storage is fresh and removed after the boot.

    Args:
        bytes: Bytes of KV.
        files: Number of files, since LMCache stores a chunk of tokens as one object.
    """

    bytes: int
    files: int


def stored(profile: Profile, *, hub: Path | None = None) -> Stored | None:
    """Return what a boot of `profile` stores, None where the model's or the workload's size is not known.

    Args:
        profile: Profile to serve.
        hub: Folder of the Hugging Face cache; None for the one that the environment names.
    """
    config = model_config(profile.model, hub=hub)
    per_token = bytes_per_token(config, dtype=profile.dtype, vllm_args=profile.vllm_args) if config else None
    counts = [profile.workload.stored_tokens(length) for length in profile.workload.context_tokens]
    tokens = [count for count in counts if count is not None]
    if per_token is None or len(tokens) < len(counts):
        return None
    return Stored(per_token * sum(tokens), math.ceil(sum(tokens) / profile.chunk_tokens))


def bytes_per_token(config: Mapping[str, Any], *, dtype: str, vllm_args: Sequence[str] = ()) -> int | None:
    """Return the bytes of KV that one token leaves: layers x 2 x KV heads x head dimension x bytes of a number.

    Args:
        config: Content of the model's config.json.
        dtype: Value of vLLM's option `--dtype`; `auto` takes the model's.
        vllm_args: More arguments of vLLM, of which `--kv-cache-dtype` counts.

    Returns:
        None for models to which the formula does not apply (some layers without attention) and for unknown dtypes.
    """
    config = {**config, **(config.get("text_config") or {})}
    size = _number_bytes(config, dtype, vllm_args)
    layers = config.get("num_hidden_layers")
    kinds = set(config.get("layer_types") or ())
    if size is None or layers is None or any("attention" not in kind or "linear" in kind for kind in kinds):
        return None
    if config.get("kv_lora_rank"):
        # Multi-head latent attention keeps one compressed vector a layer and token.
        return int(layers * (config["kv_lora_rank"] + config.get("qk_rope_head_dim", 0)) * size)
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    dimension = config.get("head_dim")
    if dimension is None and config.get("hidden_size") and config.get("num_attention_heads"):
        dimension = config["hidden_size"] // config["num_attention_heads"]
    return int(layers * 2 * heads * dimension * size) if heads and dimension else None


def model_config(model: str, *, hub: Path | None = None) -> Mapping[str, Any] | None:
    """Return a model's config.json from its folder, from the Hugging Face cache, or as built in; None without any."""
    cache = hub or Path(os.environ.get("HF_HUB_CACHE") or _hf_home() / "hub")
    candidates = [Path(model) / "config.json", *_snapshots(cache, model)]
    for path in candidates:
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
    return _KNOWN.get(model)


def _number_bytes(config: Mapping[str, Any], dtype: str, vllm_args: Sequence[str]) -> int | None:
    kv = kv_dtype(vllm_args)
    if kv.startswith(("fp8", "int8")):
        return 1
    chosen = kv if kv != "auto" else dtype
    if chosen == "auto":
        chosen = str(config.get("dtype") or config.get("torch_dtype") or "")
        # vLLM's own rule: a model in float32 is served in half precision.
        chosen = "bfloat16" if chosen == "float32" else chosen
    return _BYTES.get(chosen.removeprefix("torch."))


def _snapshots(cache: Path, model: str) -> list[Path]:
    return sorted(cache.glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json"))


def _hf_home() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or default)
