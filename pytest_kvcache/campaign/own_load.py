"""A workload that a test sends to its shared pair: sent, proved and kept like the loads of a measurement."""

from __future__ import annotations

from dataclasses import replace

from pytest_kvcache.campaign import boots, measuring
from pytest_kvcache.campaign.load_process import load_plan
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.probes.probe import Probed
from pytest_kvcache.proof.gpus import GpuLoad
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.prepared import Prepared
from pytest_kvcache.workload.registry import workload_kinds
from pytest_kvcache.workload.salted import salted_script
from pytest_kvcache.workload.tokens import ServedTokenizer

_NOT_LOOKED_AT = "on a pair that tests share"


def load(state: PerfState, tier: Tier, pair: ServingPair, workload: Workload, context_tokens: int) -> RunResult:
    """Send `workload` to a running pair and return what came of it.

    Args:
        state: The session's.
        tier: What the pair serves.
        pair: The running one.
        workload: Of any class, also one that is registered nowhere.
        context_tokens: One of the workload's lengths.

    Raises:
        BootError: A component of the pair died.
        ConfigError: The workload has no such length, or what it reads is not there or not sound.
        RunError: The workload does not fit the server, or the load process failed.
    """
    if context_tokens not in workload.context_tokens:
        known = ", ".join(map(str, workload.context_tokens))
        raise ConfigError(f"{context_tokens} is none of the workload's context_tokens: {known}", where="kv_load")
    workload.check()
    boot = pair.logs.parent
    number = 1 + sum(1 for _ in boot.glob("load-*"))
    folder = boot / f"load-{number}"
    folder.mkdir()
    first_user = number * boots.USERS_APART  # loads on one pair share no user's text
    standing = pair.plan.standing
    salt = f"{state.run.id}-{boot.name}-{number}" if standing is not None else ""
    if not _is_registered(workload):
        authorization = f"Bearer {pair.plan.api_key}" if pair.plan.api_key else ""
        if standing is not None:
            authorization = standing.authorization
        served = ServedTokenizer(
            pair.plan.tokenizer_url, pair.model, authorization=authorization, compat_helps=workload.HAS_COMPAT
        )
        tokenizer = served if workload.needs_tokenizer else None
        script = salted_script(workload, context_tokens, tokenizer, salt=salt, first_user=first_user)
        salt = ""
        workload = Prepared.of(workload, script, context_tokens=context_tokens, file=folder / "script.pickle")
    arm = measuring.arm_of(tier, state)
    plan = load_plan(
        pair,
        workload,
        context_tokens=context_tokens,
        first_user=first_user,
        folder=folder,
        salt=salt,
        nodes=state.settings.options.load_nodes,
    )
    return boots.run_plan(
        replace(arm, profile=arm.profile.model_copy(update={"workload": workload})),
        state,
        pair,
        plan,
        probed=Probed(unchecked=(f"cold start, cross-instance hits and integrity: {_NOT_LOOKED_AT}",)),
        gpus_during=lambda _: GpuLoad(notes=(f"GPUs were not watched: {_NOT_LOOKED_AT}",)),
    )


def _is_registered(workload: Workload) -> bool:
    """Return whether the load process knows the workload's class by its kind."""
    point = workload_kinds().get(workload.kind)
    return point is not None and point.load() is type(workload)
