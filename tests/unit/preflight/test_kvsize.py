"""How much KV a workload stores, from the dimensions of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.preflight.kvsize import bytes_per_token, model_config, stored
from tests.unit.test_tiers import QWEN, TINY

QWEN3_8B = {
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("config", "dtype", "args", "size"),
    [
        (QWEN3_8B, "auto", [], 147456),
        (QWEN3_8B, "float32", [], 294912),
        (QWEN3_8B, "auto", ["--kv-cache-dtype", "fp8"], 73728),
        (QWEN3_8B, "auto", ["--kv-cache-dtype=fp8_e5m2"], 73728),
        ({**QWEN3_8B, "layer_types": ["full_attention"] * 36}, "auto", [], 147456),
        (
            {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 256, "torch_dtype": "float16"},
            "auto",
            [],
            2048,
        ),
        ({"text_config": QWEN3_8B}, "auto", [], 147456),
        ({**QWEN3_8B, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, "auto", [], 41472),
        ({**QWEN3_8B, "layer_types": ["linear_attention", "full_attention"]}, "auto", [], None),
        ({**QWEN3_8B, "dtype": "int3"}, "auto", [], None),
        ({}, "float32", [], None),
    ],
)
def test_bytes_of_a_token(config: dict[str, Any], dtype: str, args: list[str], size: int | None) -> None:
    """Layers x 2 x KV heads x head dimension x bytes; compressed KV is smaller, and what is not known is None."""
    assert bytes_per_token(config, dtype=dtype, vllm_args=args) == size


def test_where_dimensions_come_from(tmp_path: Path) -> None:
    """A folder's config.json, the Hugging Face cache, or what is known of the built-in models."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    assert model_config(str(tmp_path)) == {"num_hidden_layers": 1}
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    assert model_config("a/b", hub=tmp_path) == {"num_hidden_layers": 2}
    assert model_config("Qwen/Qwen3-8B", hub=tmp_path) is not None
    assert model_config("a/c", hub=tmp_path) is None


def test_what_a_boot_stores(tmp_path: Path) -> None:
    """The built-in profiles are of known size; a model that nothing is known of is not."""
    tiny, qwen = stored(TINY, hub=tmp_path), stored(QWEN, hub=tmp_path)
    assert tiny is not None
    assert qwen is not None
    assert tiny.bytes == 4096 * sum(TINY.workload.stored_tokens(n) or 0 for n in TINY.workload.context_tokens)
    assert 100e9 < qwen.bytes < 1e13
    assert stored(TINY.model_copy(update={"model": "nobody/knows"}), hub=tmp_path) is None
