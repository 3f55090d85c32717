"""What of a profile may go wrong and is told before a boot: not sure enough to refuse."""

from __future__ import annotations

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.vllm_args import kv_dtype, value_of

#: vLLM's own block size, where nothing says another one and the model needs none: its CPU build, and GPUs.
_CPU_BLOCK, _GPU_BLOCK = 128, 16
#: Formats of a KV cache that keep what the model computed.
_WHOLE_FORMATS = frozenset({"auto", "float32", "float", "float16", "half", "bfloat16"})


def cautions(profile: Profile, *, offloads: bool) -> list[str]:
    """Return what to know of a profile before it is booted, a line each.

    Args:
        profile: To be served.
        offloads: Whether a tier with LMCache is meant.
    """
    found = []
    block = _GPU_BLOCK if profile.gpus_per_server else _CPU_BLOCK
    if offloads and value_of(profile.vllm_args, "--block-size") is None and profile.chunk_tokens % block:
        found.append(
            f"chunk_tokens {profile.chunk_tokens} is no whole number of vLLM's blocks, {block} tokens where nothing "
            f"says otherwise: LMCache may refuse it; take a multiple of {block}, or give --block-size in vllm_args"
        )
    dtype = kv_dtype(profile.vllm_args)
    if (
        profile.rules.probes
        and dtype not in _WHOLE_FORMATS
        and "logprob_tolerance" not in profile.rules.model_fields_set
    ):
        found.append(
            f"the KV cache is kept as {dtype}, which is not what the model computed: answers from a cache may differ "
            f"from computed ones by more than rules.logprob_tolerance ({profile.rules.logprob_tolerance:g}), and a "
            "boot where they do is called corrupt; set rules.logprob_tolerance to what probes.json shows, or "
            "rules.probes = false"
        )
    return found
