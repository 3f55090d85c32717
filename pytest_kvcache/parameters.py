"""Which of `kv_tier`, `kv_context` and `kv_gate` a test gets from the plugin, and which ones its author gives it.

Light: this runs while every session collects.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_kvcache.selection import is_ours_definition, used_definitions

NAMES = ("kv_tier", "kv_context", "kv_gate")

#: Fixtures that a pair, which lives for the whole session, is booted by.
_FOR_THE_SESSION = ("kv_tier", "kv_profile")


def asked(metafunc: pytest.Metafunc) -> list[str]:
    """Return the parameters that the plugin has to give to a test, in the order of `NAMES`.

    Left out is what the author of the test gives himself: with `parametrize` or a `pytest_generate_tests` of his own,
    or with a fixture of that name that does not ask for ours. The hook that calls this must be the last of its kind:
    only then do all these others show.
    """
    return [
        name
        for name in NAMES
        if name in metafunc.fixturenames
        and any(map(is_ours_definition, _definitions(metafunc, name)))
        # pytest's own record of what is parametrized so far: there is no public one.
        and not any(name in call.params for call in metafunc._calls)
    ]


def too_short_for_a_pair(metafunc: pytest.Metafunc) -> str:
    """Return what to write where `vllm_pair`, which lives for the session, is to be booted by something shorter.

    Returns:
        A sentence, "" where nothing is wrong.
    """
    if "vllm_pair" not in metafunc.fixturenames or not any(
        map(is_ours_definition, _definitions(metafunc, "vllm_pair"))
    ):
        return ""
    for name in _FOR_THE_SESSION:
        nearest = next(_definitions(metafunc, name), None)
        if nearest is not None and nearest.scope != "session":
            return (
                f'{name} lives for a {nearest.scope} here, and vllm_pair for the session: write scope="session" in '
                f"the fixture or the parametrize that gives {name}"
            )
    return ""


def _definitions(metafunc: pytest.Metafunc, name: str) -> Iterator[pytest.FixtureDef[object]]:
    """Return the fixtures that a test runs for `name`, the nearest first."""
    # There is no public way to a test's fixture definitions.
    return used_definitions(metafunc._arg2fixturedefs.get(name, ()), name)
