"""Judge a boot by the answers to the probes, and name its faults (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_kvcache.probes.answers import LogprobDifference, ProbeAnswer, compare
from pytest_kvcache.probes.steps import SentinelAnswer, Step
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.counters import Counters, total

#: Places where KV may be, by field of `Tokens`, in words for people.
_LEVELS = {
    "device": "the device cache",
    "l1": "L1",
    "l2": "the shared storage",
    "unsplit": "LMCache (L1 or the shared storage)",
    "other": "a connector",
}
COMPUTED = "computed"
#: Counters that are at zero on a server that nobody has asked.
_USED = (
    "vllm:prompt_tokens_total",
    "lmcache_mp_lookups_requests_total",
    "lmcache_mp_l1_write_chunks_total",
    "lmcache_mp_l2_store_submitted_objects_chunks_total",
    "lmcache:num_lookup_requests_total",
    "lmcache:num_stored_tokens_total",
)


@dataclass(frozen=True)
class ProbeRules:
    """The settings by which answers are judged.

    Args:
        claim: Claim of the tier.
        chunk_tokens: LMCache's chunk size (tokens).
        tolerance: Largest allowed difference of two log-probabilities (natural logarithms).
    """

    claim: Claim
    chunk_tokens: int
    tolerance: float


def used(counters: Mapping[str, Counters]) -> list[str]:
    """Return a line for each component that was used before the first request of a boot."""
    found = []
    for name, own in counters.items():
        grown = [key for key in _USED if total(own, key)]
        if grown:
            found.append(
                f"{name} was used before this boot asked it anything ({grown[0]}: {total(own, grown[0]):.0f}): "
                "somebody else talks to it, or it is not the server that this boot has started"
            )
    return found


def computed(answers: Sequence[SentinelAnswer]) -> dict[str, ProbeAnswer]:
    """Return the first answer to each sentinel, by the sentinel's home; later answers are compared with it."""
    return {each.sentinel.home: each.served.answer for each in answers if each.step is Step.COLD}


def judge(answers: Sequence[SentinelAnswer], known: Mapping[str, ProbeAnswer], rules: ProbeRules) -> list[str]:
    """Return why no verdict may rest on a boot, a line each.

    Args:
        answers: Answers in the order of the requests.
        known: Right answers by the sentinel's home (`computed`).
        rules: Settings by which answers are judged.
    """
    found = []
    for each in answers:
        if each.step is Step.COLD:
            found += _cold(each, rules)
        elif each.step is Step.RELOADED:
            found += _reloaded(each, rules)
        elif each.step is Step.ACROSS:
            found += _across(each, rules)
        elif each.step is Step.EMPTIED:
            found += _emptied(each, rules)
    return found + [_differs(each, d) for each, d in differences(answers, known, rules) if d.fault]


def differences(
    answers: Sequence[SentinelAnswer], known: Mapping[str, ProbeAnswer], rules: ProbeRules
) -> list[tuple[SentinelAnswer, LogprobDifference]]:
    """Return each later answer with its difference from the first answer to the same sentinel."""
    return [
        (each, compare(known[each.sentinel.home], each.served.answer, tolerance=rules.tolerance))
        for each in answers
        if each.step is not Step.COLD and each.sentinel.home in known
    ]


def source(each: SentinelAnswer) -> str:
    """Return where most of a prompt's KV came from, `COMPUTED` where no cache had any of it."""
    tokens = each.served.tokens
    name = max(_LEVELS, key=lambda level: float(getattr(tokens, level)))
    if getattr(tokens, name):
        return _LEVELS[name]
    return "a cache" if each.served.answer.cached_tokens else COMPUTED


def _cold(each: SentinelAnswer, rules: ProbeRules) -> list[str]:
    tokens = each.served.tokens
    if not _hit(each):
        return []
    todo = (
        "the storage held what an earlier run left; empty it, or give the tier one of its own"
        if tokens.l2 or tokens.l2_found or (tokens.unsplit_found and rules.claim is Claim.L2)
        else "leftovers of an earlier run: the server or its LMCache was not started by this boot"
    )
    return [f"warm start: {each.server} had {_how_much(each)} of a prompt that this boot had not sent before; {todo}"]


def _reloaded(each: SentinelAnswer, rules: ProbeRules) -> list[str]:
    if rules.claim is Claim.DEVICE or not _whole(each, rules) or each.served.tokens.external:
        return []
    return [
        f"{each.server}'s LMCache gave back nothing of a prompt of {each.served.answer.prompt_tokens} tokens that it "
        f"had just been given{_never_asked(each)}"
    ]


def _across(each: SentinelAnswer, rules: ProbeRules) -> list[str]:
    cached, home = each.served.answer.cached_tokens, each.sentinel.home
    if rules.claim is not Claim.L2:
        if not _hit(each):
            return []
        return [
            f"{each.server} had {_how_much(each)} of a prompt that only {home} had computed, and the tier claims that "
            "its servers share nothing: a shared storage is configured elsewhere (profile, environment)"
        ]
    whole = _whole(each, rules)
    if cached >= whole - rules.chunk_tokens and (not whole or each.served.tokens.external):
        return []
    return [
        f"{each.server} had {cached} of {whole} tokens of a prompt that {home} had computed and stored"
        f"{_never_asked(each)}: the servers do not share the storage, or name the same prompt differently "
        "(PYTHONHASHSEED, model path, folder)"
    ]


def _emptied(each: SentinelAnswer, rules: ProbeRules) -> list[str]:
    tokens = each.served.tokens
    kept = [_LEVELS["device"]] if tokens.device else []
    if tokens.l1 or (rules.claim is not Claim.L2 and _hit(each)):
        kept.append(_LEVELS["l1"])
    if not kept:
        return []
    return [f"{' and '.join(kept)} of {each.server} was emptied and had {_how_much(each)} of a prompt all the same"]


def _differs(each: SentinelAnswer, difference: LogprobDifference) -> str:
    where = source(each)
    if where == COMPUTED:
        return (
            f"{each.server} computed another answer to the prompt that {each.sentinel.home} had computed: "
            f"{difference.fault}; the servers are not alike (device, dtype, kernels), or logprob_tolerance is too small"
        )
    return (
        f"corrupted KV: {each.server} answers the same prompt differently when its KV comes from {where}: "
        f"{difference.fault}; what is loaded is not what was stored (a torn or damaged object, two prompts under one "
        "key), or logprob_tolerance is too small for this device"
    )


def _hit(each: SentinelAnswer) -> bool:
    tokens = each.served.tokens
    return bool(each.served.answer.cached_tokens or tokens.external or tokens.found)


def _whole(each: SentinelAnswer, rules: ProbeRules) -> int:
    """Return the number of a prompt's tokens in whole chunks, without its last token, which is always computed."""
    return (each.served.answer.prompt_tokens - 1) // rules.chunk_tokens * rules.chunk_tokens


def _how_much(each: SentinelAnswer) -> str:
    tokens, answer = each.served.tokens, each.served.answer
    return f"{answer.cached_tokens or tokens.found:.0f} of {answer.prompt_tokens} tokens in {source(each)}"


def _never_asked(each: SentinelAnswer) -> str:
    return "" if each.served.tokens.requested else " (its LMCache was never asked)"
