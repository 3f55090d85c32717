"""What tests ask of a session: to measure a tier at a context length, or to keep a pair of it running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pytest_kvcache.campaign import boots, runner
from pytest_kvcache.campaign.against import AgainstCampaign
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.baseline import BaselineCampaign
from pytest_kvcache.campaign.campaign import CellKey
from pytest_kvcache.campaign.comparability import workload_hash
from pytest_kvcache.campaign.gains import GainCampaign, GainResult
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.verdict.gains import Gain


def measure(state: PerfState, tier: Tier, context_tokens: int, *, selected: Sequence[int]) -> CellResult:
    """Return what a tier brought at one context length; the first call for it boots, all others read.

    Args:
        state: The session's.
        tier: What to measure.
        context_tokens: Length of the user context. It need not be one of the profile's: it has a cell, and a baseline,
            of its own.
        selected: Lengths that the session's tests of this tier ask for: one boot serves all of them that are not
            measured yet, where `context_tokens` is among them.

    Raises:
        KvCacheError: The cell cannot be measured, or could not be before; or its tier was interrupted.
    """
    campaign, key = state.campaign, _key(state, tier, context_tokens)
    if (known := campaign.result(key)) is not None:
        return known
    together = selected if context_tokens in selected else [context_tokens]
    keys = {length: each for length in together if (each := _key(state, tier, length)) not in campaign.results}
    with campaign.measuring(tier.name, tuple(keys.values())), state.run.leaving_nothing():
        a, b = arm_of(tier, state), state.other_arm(tier)
        lengths = list(keys)
        work = BaselineCampaign(state, a, lengths) if b is None else AgainstCampaign(state, a, b, lengths)
        found = work.run()
        for length, result in found.items():
            campaign.keep(keys[length], result)
            if result.explanation is not None:
                runner.add_facts(result.folder, {"explanation": result.explanation.facts()})
    return found[context_tokens]


@contextlib.contextmanager
def shared_pair(state: PerfState, tier: Tier) -> Iterator[ServingPair]:
    """Boot a pair for tests that talk to it themselves, and stop it.

    Raises:
        KvCacheError: It did not start, or the tier was interrupted.
    """
    with contextlib.ExitStack() as stack:
        with state.campaign.booting(tier.name):
            stack.enter_context(state.run.leaving_nothing())
            arm, boot = arm_of(tier, state), state.campaign.next_boot(tier.name, "pair")
            plan = arm.tier_plan(state.run, boot)
            logs = state.tier_folder(tier.name) / boot / "logs"
            pair = stack.enter_context(boots.booted(arm, state, plan, logs=logs))
        with state.campaign.sharing(tier.name):
            yield pair


def arm_of(tier: Tier, state: PerfState) -> Arm:
    """Return the session's engine and profile with a tier."""
    return Arm("", state.engine_of(tier), state.profile, tier)


def _key(state: PerfState, tier: Tier, context_tokens: int) -> CellKey:
    return CellKey(tier.name, context_tokens, workload_hash(state.profile.workload.sent(context_tokens)))


def gain(state: PerfState, wanted: Gain, context_tokens: int, *, selected: Sequence[int]) -> GainResult:
    """Return what a tier brings over another one at a context length; the first call boots both, all others read.

    Args:
        state: The session's.
        wanted: Which gate; all gains of its two tiers are decided on the same boots.
        context_tokens: Length of the user context.
        selected: Lengths at which the session's tests ask for gains of this tier.

    Raises:
        KvCacheError: The tiers cannot be measured, or could not be before.
    """
    known, pair = state.campaign.gains, (wanted.tier, wanted.over)
    together = list(selected) if context_tokens in selected else [context_tokens]
    if (*pair, context_tokens) not in known:
        lengths = [length for length in together if (*pair, length) not in known]
        tiers = state.settings.catalogue.tiers
        gains = [g for g in state.profile.gates.declared_gains() if (g.tier, g.over) == pair]
        arms = (arm_of(tiers[wanted.over], state), arm_of(tiers[wanted.tier], state))
        try:
            with state.campaign.measuring(wanted.tier, ()), state.run.leaving_nothing():
                known.update({(*pair, n): r for n, r in GainCampaign(state, *arms, gains, lengths).run().items()})
        except KvCacheError as error:
            known.update(dict.fromkeys([(*pair, length) for length in lengths], error))
    found = known[(*pair, context_tokens)]
    if isinstance(found, KvCacheError):
        raise found
    return next(each for each in found if each.gain.short == wanted.short)
