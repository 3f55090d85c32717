"""Refuses other plugins of the session that run failed tests again, and names those that would end tests early."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from pytest_kvcache.config.profile import Profile

_NO_RERUNS = "perf tests are not run again when they fail: a verdict that is repeated until it passes is none"
#: Options and ini keys of pytest-rerunfailures, flaky and pytest-retry; each is off where its value is 0 or not set.
_RERUNS = ("reruns", "force_reruns", "force_flaky", "retries")


def refuse(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Refuse a session that would run failed perf tests again, each in a process of its own, or in several threads.

    Args:
        config: pytest's configuration of the session.
        items: The session's perf tests.

    Raises:
        pytest.UsageError: An option, a key of the ini file or a test asks for that; the error names it.
    """
    if config.getoption("forked", None):
        raise pytest.UsageError("--forked: perf tests share one pair, and a process for each test would lose it")
    if str(config.getoption("parallel_threads", None) or 1) != "1":  # of pytest-run-parallel
        raise pytest.UsageError("--parallel-threads: perf tests measure one pair at a time: set it to 1 for them")
    for name in _RERUNS:
        given = config.getoption(name, None)
        if _number(given):
            raise pytest.UsageError(f"--{name.replace('_', '-')}: {_NO_RERUNS}")
        if (given is None or given is False) and _number(ini(config, name)):
            raise pytest.UsageError(f"{config.inipath}: {name}: {_NO_RERUNS}; set it to 0 with -o {name}=0")
    for item in items:
        if _is_run_again(item):
            raise pytest.UsageError(f"{item.nodeid}: {_NO_RERUNS}; take the marker or decorator flaky away")


def _is_run_again(item: pytest.Item) -> bool:
    """Return whether a test is run again on failure, by its marker or by an attribute that the package flaky sets."""
    marker = item.get_closest_marker("flaky")
    if marker is not None:
        times = marker.kwargs.get("reruns", marker.kwargs.get("retries", marker.args[0] if marker.args else 1))
        return bool(_number(times))
    return getattr(getattr(item, "function", None), "_flaky_max_runs", None) is not None


def short_timeouts(config: pytest.Config, items: Sequence[pytest.Item], profile: Profile) -> list[str]:
    """Return a line for each time-out of pytest-timeout that is shorter than a boot with its loads may take.

    The first test of a tier does all boots of the tier, each with a load for every context.

    Args:
        config: pytest's configuration of the session.
        items: The session's perf tests.
        profile: The profile that they run.
    """
    if not config.pluginmanager.hasplugin("timeout"):
        return []
    loads_s = profile.workload.duration_s * len(profile.workload.context_tokens)
    longest_s = profile.boot_timeout_s + loads_s
    lines: dict[str, None] = {}
    for item in items:
        where, timeout_s = _timeout(config, item)
        if 0 < timeout_s < longest_s:
            lines[
                f"{where} ends a test after {timeout_s:g} s; the first test of a tier does its boots, and one alone "
                f"may take {profile.boot_timeout_s:g} s to start and {loads_s:g} s of load (profile {profile.name}): "
                "give perf tests more with @pytest.mark.timeout, or 0 for none"
            ] = None
    return list(lines)


def ini(config: pytest.Config, name: str) -> object:
    """Return the value of an ini key, None where no plugin declares it."""
    try:
        return config.getini(name)
    except (KeyError, ValueError):
        return None


def _timeout(config: pytest.Config, item: pytest.Item) -> tuple[str, float]:
    """Return where a test's time-out is set, by pytest-timeout's order of precedence, and its length (s; 0 is none)."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        value = marker.args[0] if marker.args else marker.kwargs.get("timeout")
        if value is not None:
            return f"{item.nodeid.partition('[')[0]}: the marker timeout", _number(value)
    for where, value in (
        ("--timeout", config.getoption("timeout", None)),
        ("PYTEST_TIMEOUT", os.environ.get("PYTEST_TIMEOUT")),
        (f"{config.inipath}: timeout", ini(config, "timeout")),
    ):
        if value not in (None, ""):
            return where, _number(value)
    return "", 0.0


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0
