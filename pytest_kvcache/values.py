"""Turns the values of `kv_tier`, `kv_context`, `kv_gate` and `kv_profile` into what they name, whoever gives them.

A test's parameters are short strings and numbers, since they appear in reports that are compared over months.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_kvcache.api.result import Result
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.verdict.gates import AnyGate

#: What the author of a test can do in place of naming the fixture, for errors.
_INSTEAD = {
    "kv_tier": "choose one with --tier NAME",
    "kv_context": "write multi_round_qa(context_tokens=NUMBER)",
    "kv_gate": "judge all of them with kv_baseline.check(result)",
}


def given(request: pytest.FixtureRequest, known: Sequence[object]) -> object:
    """Return the value that a test is parametrized with, or the session's only value.

    Args:
        request: The request of the fixture that has the value.
        known: All values that the session has for the fixture.

    Raises:
        ConfigError: The session has several values, and pytest cannot run the test once for each.
    """
    if hasattr(request, "param"):
        return request.param
    if len(known) == 1:
        return known[0]
    name = str(request.fixturename)
    raise ConfigError(
        f"this test would have to run once for each of {', '.join(map(str, known))}, which pytest cannot do for "
        "methods of unittest.TestCase, nor for what getfixturevalue asks for",
        where=name,
        todo=f"name {name} in the arguments of a test function, or in its usefixtures; or {_INSTEAD[name]}",
    )


def tier(value: object, state: PerfState) -> Tier:
    """Return the tier of a name, and a tier unchanged.

    Raises:
        ConfigError: There is no tier of that name, or the value is neither a name nor a tier.
    """
    if isinstance(value, str):
        if value not in state.settings.catalogue.tiers:
            raise ConfigError(
                f"unknown tier {value!r}; known: {', '.join(state.settings.catalogue.tiers)}", where="kv_tier"
            )
        return state.settings.catalogue.tiers[value]
    if not isinstance(getattr(value, "name", None), str) or not hasattr(value, "plan"):
        raise ConfigError(f"must be the name of a tier, not {value!r}", where="kv_tier")
    return value  # type: ignore[return-value] # a protocol: third parties' tiers need no base class


def context(value: object, profile: Profile) -> int:
    """Return a length of user contexts (tokens), once it is checked.

    Raises:
        ConfigError: The value is no length, or the profile's servers would refuse such long prompts.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"must be a whole number of tokens, at least 1, not {value!r}", where="context_tokens")
    longest = profile.workload.model_copy(update={"context_tokens": (value,)}).longest_tokens()
    if longest is not None and profile.max_model_len is not None and longest > profile.max_model_len:
        raise ConfigError(
            f"{value} makes a longest prompt, with its answer, of {longest} tokens; max_model_len of profile "
            f"{profile.name} is {profile.max_model_len}",
            where="context_tokens",
        )
    return value


def tier_name(request: pytest.FixtureRequest) -> str | None:
    """Return the name of the tier that a test is parametrized with, None for a test that is not."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    tier = params.get("kv_tier")
    return None if tier is None else str(getattr(tier, "name", tier))


def gates(profile: Profile, tier: str | None = None) -> tuple[AnyGate, ...]:
    """Return all gates of a profile: the judged metrics, then the gates that the profile declares.

    Args:
        profile: The session's profile.
        tier: Name of a tier, to leave out gains of other tiers; None keeps all gains.
    """
    gains = (gain for gain in profile.gates.declared_gains() if tier in {None, gain.tier})
    return (*profile.judged, *profile.declared_gates, *gains)


def gate(value: object, profile: Profile, tier: str | None = None) -> AnyGate:
    """Return the gate of a short name or of a figure's key, and a gate unchanged.

    Raises:
        ConfigError: The profile has no gate of that name.
    """
    known = gates(profile, tier)
    for each in known:
        if value in (each, each.short, getattr(each, "key", each.short)):
            return each
    names = ", ".join(each.short for each in known)
    raise ConfigError(
        f"must be one of {names}, not {value!r}",
        where="kv_gate",
        todo=f"exact gates, limits and gains are declared in [profiles.{profile.name}.gates]",
    )


def result(value: object) -> Result:
    """Return a result of `multi_round_qa` or `kv_measure` unchanged.

    Raises:
        ConfigError: The value is something else; a load that `kv_load` returns, for instance, has no baseline.
    """
    if not isinstance(value, Result):
        raise ConfigError(
            f"must be what multi_round_qa or kv_measure returned, not {type(value).__name__}", where="kv_baseline.check"
        )
    return value


def check_profile(value: object, state: PerfState) -> None:
    """Check that the profile which a test gets from `kv_profile` is the session's.

    Raises:
        ConfigError: The test has another profile, which would have no effect.
    """
    name = value.name if isinstance(value, Profile) else value
    if name != state.profile.name or (isinstance(value, Profile) and value != state.profile):
        raise ConfigError(
            f"a session runs one profile, {state.profile.name}: no fixture or parametrize can change it",
            where="kv_profile",
            todo="choose with --kv-profile NAME, or with kv_profile in the ini file; a profile of your own is a "
            "[profiles.NAME] table in kvcache.toml",
        )
