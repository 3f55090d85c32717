"""What of a profile may go wrong and is told before a boot: not sure enough to refuse."""

from __future__ import annotations

from pytest_kvcache.config.profile import CPU_BLOCK, GPU_BLOCK, Profile
from pytest_kvcache.config.vllm_args import kv_dtype, value_of
from pytest_kvcache.verdict.interim import resolution
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.rounds import can_stop_early

#: Formats of a KV cache that keep what the model computed.
_WHOLE_FORMATS = frozenset({"auto", "float32", "float", "float16", "half", "bfloat16"})

#: Tiers of the built-in catalogue, each of which has all gates.
_USUAL_TIERS = 4


def cautions(profile: Profile, *, offloads: bool) -> list[str]:
    """Return what to know of a profile before it is booted, a line each.

    Args:
        profile: To be served.
        offloads: Whether a tier with LMCache is meant.
    """
    found = []
    block = GPU_BLOCK if profile.gpus_per_server else CPU_BLOCK
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
    return found + _cost_of_metrics(profile)


def _cost_of_metrics(profile: Profile) -> list[str]:
    """Return what the profile's own choice of metrics costs all gates, a line each."""
    if not profile.gates.metrics:
        return []
    found = []
    count, usual, boots = len(profile.judged), len(DEFAULT_METRICS), profile.rules.baseline_boots
    cells = len(profile.workload.context_tokens) * _USUAL_TIERS
    if count > usual and boots > 1:
        # As many boots of each context lend their spread; boots - 1 degrees of freedom each. Declared drift costs less,
        # as its quantiles are those of a normal distribution, and how much of the spread it is nobody knows yet.
        df = len(profile.workload.context_tokens) * (boots - 1)
        more, less = (
            resolution(profile.policy, baseline_boots=boots, df=df, family=cells * metrics)
            for metrics in (count, usual)
        )
        found.append(
            f"gates.metrics names {count} metrics: a change must be up to {more / less - 1:.0%} larger to be told than "
            f"with {usual}, since each gate is one more that may raise a false alarm"
        )
    if profile.rules.early_stop and not can_stop_early(profile.judged):
        whole = [metric.key for metric in profile.judged if not can_stop_early([metric])]
        found.append(f"boots run to their end, since {', '.join(whole)} cannot be told from their first rounds")
    return found
