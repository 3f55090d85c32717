"""What the plugin does once perf tests were asked for; `plugin.py` calls it, and imports it only then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence

import pytest

from pytest_kvcache import options, parameters
from pytest_kvcache.baselines import store
from pytest_kvcache.campaign import settings
from pytest_kvcache.campaign.state import KEY, PerfState
from pytest_kvcache.errors import BaselineError, ConfigError
from pytest_kvcache.report import benchmark as rows_of_benchmark
from pytest_kvcache.report.session import SessionReport
from pytest_kvcache.runs import signals
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.showable import showable
from pytest_kvcache.verdict.metrics import JUDGED

_NO_RERUNS = "perf tests are not run again when they fail: a verdict that is repeated until it passes is none"


def activate(config: pytest.Config) -> None:
    """Check all configuration, register the fixtures and make the session's state.

    Raises:
        pytest.UsageError: The configuration is wrong, or the session is distributed.
    """
    _refuse_xdist(config)
    _refuse_reruns(config)
    try:
        chosen = settings.resolve(options.from_config(config))
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None

    def say(line: str) -> None:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        capture = config.pluginmanager.get_plugin("capturemanager")
        if reporter is not None:
            with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
                reporter.ensure_newline()
                reporter.write_line(showable(f"kvcache: {line}", sys.stdout))

    state = PerfState(chosen, say)
    config.stash[KEY] = state
    config.pluginmanager.register(SessionReport(state), "kvcache-report")
    restore = signals.end_like_ctrl_c(lambda name: pytest.exit(f"{name} received", returncode=143))
    config.add_cleanup(restore)


def parametrize(metafunc: pytest.Metafunc, asked: Sequence[str]) -> None:
    """Give a test its tiers (session scope), its contexts and its gates: those of them that it asks the plugin for.

    They are names and numbers. Reports keep them (Allure, pytest-benchmark), and know a test by them again.
    """
    if wrong := parameters.too_short_for_a_pair(metafunc):
        pytest.fail(f"{metafunc.definition.nodeid}: {wrong}", pytrace=False)
    chosen = metafunc.config.stash[KEY].settings
    if "kv_tier" in asked:
        metafunc.parametrize("kv_tier", [tier.name for tier in chosen.tiers], indirect=True, scope="session")
    if "kv_context" in asked:
        metafunc.parametrize("kv_context", chosen.profile.workload.context_tokens, indirect=True)
    if "kv_gate" in asked:
        metafunc.parametrize("kv_gate", [metric.short for metric in JUDGED], indirect=True)


def prepare(items: list[pytest.Item]) -> None:
    """Refuse what would rerun perf tests, give the others their benchmark clock, and order those of a tier.

    Raises:
        pytest.UsageError: A perf test is marked to be run again when it fails.
    """
    for item in items:
        if "kv_baseline" in getattr(item, "fixturenames", ()):
            if item.get_closest_marker("flaky"):
                raise pytest.UsageError(f"{item.nodeid}: {_NO_RERUNS}")
            rows_of_benchmark.mark(item)
    # Tests that boot pairs of their own come before those that share one, so that the two never run side by side.
    order = {tier: n for n, tier in enumerate(dict.fromkeys(_tier_of(item) for item in items))}
    items.sort(key=lambda item: (order[_tier_of(item)], "vllm_pair" in getattr(item, "fixturenames", ())))


def selected_contexts(items: Sequence[pytest.Item], tier: Tier) -> list[int]:
    """Return the contexts at which the session's tests measure `tier`, shortest first.

    Where no test names the tier, one that a fixture of the project's own brings, tests that name none count.
    """
    named = [item for item in items if _tier_of(item) == tier.name]
    params = [_params(item) for item in named or items if _tier_of(item) in {"", tier.name}]
    lengths = {each.get("kv_context") for each in params}
    return sorted(length for length in lengths if isinstance(length, int) and not isinstance(length, bool))


def _tier_of(item: pytest.Item) -> str:
    tier = _params(item).get("kv_tier", "")
    return str(getattr(tier, "name", tier))


def _params(item: pytest.Item) -> Mapping[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def finish(session: pytest.Session, exitstatus: int) -> None:
    """End the run, then write the baselines that it is to leave, unless it was cut short."""
    state = session.config.stash.get(KEY, None)
    if state is None:
        return
    state.close()
    if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        state.cut_short = state.settings.options.update != "none"
        return
    try:
        state.written = store.write_all(state.settings.options.baselines, state.writes)
    except BaselineError as error:
        state.say(str(error))
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def close(config: pytest.Config) -> None:
    """End the run however the session ended."""
    state = config.stash.get(KEY, None)
    if state is not None:
        state.close()


def _refuse_reruns(config: pytest.Config) -> None:
    if config.getoption("reruns", None) or config.getoption("force_flaky", None):
        raise pytest.UsageError(_NO_RERUNS)


def _refuse_xdist(config: pytest.Config) -> None:
    workers = config.getoption("numprocesses", None)
    if workers or hasattr(config, "workerinput"):
        raise pytest.UsageError(
            "perf tests measure one pair at a time and cannot be distributed: leave out -n, or -m perf / --tier"
        )
