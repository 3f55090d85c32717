"""Tells which of `kv_tier`, `kv_context` and `kv_gate` a test gets from the plugin, and which its author gives.

The module imports nothing heavy: it runs while every session collects tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_kvcache.selection import is_ours_definition, used_definitions

NAMES = ("kv_tier", "kv_context", "kv_gate")

#: Fixtures that `vllm_pair` uses. They must be session-scoped, as the pair lives for the whole session.
_FOR_THE_SESSION = ("kv_tier", "kv_profile")


def asked(metafunc: pytest.Metafunc) -> list[str]:
    """Return the parameters that the plugin has to give to a test, in the order of `NAMES`.

    Parameters that the test's author gives are left out: by `parametrize`, by a `pytest_generate_tests` hook, or by a
    fixture of that name which does not ask for ours. The hook that calls this must run after all others of its kind, so
    that their parameters are already there.
    """
    return [
        name
        for name in NAMES
        if name in metafunc.fixturenames
        and any(map(is_ours_definition, _definitions(metafunc, name)))
        # pytest's own record of the parameters that are set so far; there is no public one.
        and not any(name in call.params for call in metafunc._calls)
    ]


def too_short_for_a_pair(metafunc: pytest.Metafunc) -> str:
    """Return an error for a test whose `vllm_pair` rests on a fixture that lives shorter than the session.

    Returns:
        A sentence that says what to write, "" where nothing is wrong.
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
