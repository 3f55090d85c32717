"""Whether a test's tier can run here, and errors told without a traceback."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pytest_kvcache import preflight, values
from pytest_kvcache.campaign import measuring
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.deployments import missing
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.config.cautions import cautions
from pytest_kvcache.errors import KvCacheError, SetupError, TierUnavailableError
from pytest_kvcache.preflight import deployment, gpus, load_nodes
from pytest_kvcache.preflight import engine as engines
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.serving.tier import Tier, TierContext
from pytest_kvcache.showable import inert
from pytest_kvcache.tiers.none import NoTier


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Turn an error meant for the person at the terminal into a failure without a traceback."""
    told = ""
    try:
        yield
    except KvCacheError as error:
        told = str(error)
    if told:
        # Without its context: pytest would show the error a second time as the cause of the failure.
        raise pytest.fail.Exception(inert(told), pytrace=False) from None


def check_profile(profile: object, state: PerfState) -> None:
    """Fail a test whose `kv_profile` is not the session's."""
    with told_plainly():
        values.check_profile(profile, state)


def usable(value: object, state: PerfState, *, named: bool = True) -> Tier:
    """Return a tier, or the one of that name, where it can run here; skip the test where not.

    Where --tier names the tier, the test fails in place of being skipped. Where --tier names others, it is skipped,
    unless `named` is False: what a tier is held against is measured beside it.
    A tier that can run, and whose storage then fails the preflight, fails in either case: its storage is there, and
    something is wrong with it.
    """
    with told_plainly():
        tier = values.tier(value, state)
        if tier in state.usable:
            return tier
        if named and state.settings.options.tiers and not state.settings.asked_by_name(tier):
            pytest.skip(
                f"{state.settings.options.tier_option} names {', '.join(state.settings.options.tiers)}, "
                f"and not tier {tier.name}"
            )
        if state.settings.attaches:
            reason = "" if tier.name in state.settings.attached else missing(tier.name).what
        else:
            arm = measuring.arm_of(tier, state)
            ctx = arm.context(state.run, "")
            reason = tier.unavailable(ctx) or ""
        if reason and state.settings.asked_by_name(tier):
            raise TierUnavailableError(f"cannot run here: {reason}", where=f"tier {tier.name}")
        if not reason and state.settings.attaches:
            _stands(tier, state)
        elif not reason:
            for each in (arm, state.other_arm(tier)):
                _fits(each, state)
            _preflight(tier, ctx, state)
    if reason:
        pytest.skip(f"tier {tier.name} cannot run here: {reason}")
    state.usable.append(tier)
    return tier


def _fits(arm: Arm | None, state: PerfState) -> None:
    """Look at whether machine and engine can serve a profile on a tier, and say what of the profile may go wrong.

    Raises:
        ConfigError: Too few GPUs are allotted.
        SetupError: A pair should not be booted.
    """
    if arm is None:
        return
    profile, offloads = arm.profile, not isinstance(arm.tier, NoTier)
    for line in cautions(profile, offloads=offloads):
        if line not in state.cautions_told:
            state.say(f"profile {profile.name}: {line}")
            state.cautions_told.add(line)
    key = (profile.name, arm.engine.where, offloads)
    if key not in state.stopping:
        checks = engines.checks(arm.engine, profile, imports=False, offloads=offloads)
        here = () if launchers.is_elsewhere(arm.launched_by) else gpus.blocking(profile)
        senders = load_nodes.checks(state.settings.options.load_nodes, profile.workload, os.environ)
        state.stopping[key] = (
            *here,
            *preflight.stopping("engine", checks),
            *preflight.stopping("load nodes", senders),
        )
    if found := state.stopping[key]:
        raise SetupError("; ".join(found), where=arm.engine.where, todo="the whole list: pytest-kvcache doctor")
    # A plan that nothing comes of: it leases no port.
    plan = arm.tier.plan(replace(arm.context(state.run, ""), port=lambda: 0))
    engines.check_floors(arm.engine, arm.profile, plan.offload)


def _stands(tier: Tier, state: PerfState) -> None:
    """Look at the deployment of a tier once a session.

    Raises:
        BootError: Its pods are missing or not ready.
        ConfigError: Kubernetes cannot be asked from here.
        TierUnavailableError: It cannot be measured.
    """
    arm = measuring.arm_of(tier, state)
    if tier.name not in state.preflight and arm.standing is not None:
        checks = deployment.checks(arm.standing, arm.profile, offloads=not isinstance(tier, NoTier))
        state.preflight[tier.name] = tuple(preflight.stopping(tier.name, checks))
    if found := state.preflight[tier.name]:
        raise TierUnavailableError(
            "the deployment fails the preflight: " + "; ".join(found),
            where=f"tier {tier.name}",
            todo=f"the whole list: pytest-kvcache doctor --kv-launcher attach --tier {tier.name}",
        )


def _preflight(tier: Tier, ctx: TierContext, state: PerfState) -> None:
    """Look at a tier's storage once a session.

    Raises:
        TierUnavailableError: A pair should not be booted.
    """
    if tier.name not in state.preflight:
        state.preflight[tier.name] = tuple(preflight.blocking(tier, ctx))
    if found := state.preflight[tier.name]:
        raise TierUnavailableError(
            "its storage fails the preflight: " + "; ".join(found),
            where=f"tier {tier.name}",
            todo=f"the whole list: pytest-kvcache doctor --tier {tier.name}",
        )
