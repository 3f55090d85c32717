"""What the values of `kv_tier`, `kv_context`, `kv_gate` and `kv_profile` stand for, whoever gives them.

A test's parameters are short strings and numbers: they stand in reports that are compared over months.
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
from pytest_kvcache.verdict.metrics import JUDGED

#: What a test without a value of its own can do instead.
_INSTEAD = {
    "kv_tier": "choose one with --tier NAME",
    "kv_context": "write multi_round_qa(context_tokens=NUMBER)",
    "kv_gate": "judge all of them with kv_baseline.check(result)",
}


def given(request: pytest.FixtureRequest, known: Sequence[object]) -> object:
    """Return the value that a test is parametrized with, or the only one that there is.

    Args:
        request: Of the fixture whose value it is.
        known: All values of this session.

    Raises:
        ConfigError: There are several, and nothing says which: the test cannot be run once for each.
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
    """Return the tier that a name stands for; a tier stands for itself.

    Raises:
        ConfigError: There is none of that name, or it is no name.
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
    """Return a length of user contexts, in tokens.

    Raises:
        ConfigError: It is none, or the profile's servers would refuse such prompts.
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
    """Return the name of the tier that a test is parametrized with, None where it is not."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    tier = params.get("kv_tier")
    return None if tier is None else str(getattr(tier, "name", tier))


def gates(profile: Profile, tier: str | None = None) -> tuple[AnyGate, ...]:
    """Return all gates of a profile: the metrics that are judged, then those that it declares.

    Args:
        profile: The session's.
        tier: Leaves out gains of other tiers; None leaves out none.
    """
    gains = (gain for gain in profile.gates.declared_gains() if tier in {None, gain.tier})
    return (*JUDGED, *profile.gates.declared(), *gains)


def gate(value: object, profile: Profile, tier: str | None = None) -> AnyGate:
    """Return the gate that its short name or its figure's key stands for; a gate stands for itself.

    Raises:
        ConfigError: The profile has none of that name.
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
    """Return what `multi_round_qa` or `kv_measure` brought.

    Raises:
        ConfigError: It is something else: what `kv_load` brings has no baseline.
    """
    if not isinstance(value, Result):
        raise ConfigError(
            f"must be what multi_round_qa or kv_measure returned, not {type(value).__name__}", where="kv_baseline.check"
        )
    return value


def check_profile(value: object, state: PerfState) -> None:
    """Look at whether what a test has as `kv_profile` is the session's.

    Raises:
        ConfigError: It is another one, which nothing would follow from.
    """
    name = value.name if isinstance(value, Profile) else value
    if name != state.profile.name or (isinstance(value, Profile) and value != state.profile):
        raise ConfigError(
            f"a session runs one profile, {state.profile.name}: no fixture or parametrize can change it",
            where="kv_profile",
            todo="choose with --kv-profile NAME, or with kv_profile in the ini file; a profile of your own is a "
            "[profiles.NAME] table in kvcache.toml",
        )
