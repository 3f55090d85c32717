"""What the plugin does once perf tests are asked for; `plugin.py` imports this module only then."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TextIO

import pytest

from pytest_kvcache import neighbours, options, parameters, selection, values
from pytest_kvcache.api import hooks
from pytest_kvcache.baselines import store
from pytest_kvcache.campaign import gains, settings
from pytest_kvcache.campaign.key import KEY
from pytest_kvcache.campaign.progress import Progress, Silent
from pytest_kvcache.campaign.settings import Settings
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import BaselineError, ConfigError, RunError
from pytest_kvcache.report import benchmark as rows_of_benchmark
from pytest_kvcache.report import header, progress, pulling
from pytest_kvcache.report.github import GithubReport
from pytest_kvcache.report.session import SessionReport
from pytest_kvcache.runs import signals
from pytest_kvcache.runs.leaving import Leaving
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.showable import showable
from pytest_kvcache.verdict.gains import Gain

_SETTINGS = pytest.StashKey["Settings | None"]()
#: The name of the plugin that tells GitHub Actions.
_GITHUB = "kvcache-github"


def resolved(config: pytest.Config) -> Settings | None:
    """Return the checked configuration of the session, None where it is wrong; the stash at `selection.WRONG` says why.

    The configuration is read while tests are collected, since tiers and contexts are parameters of tests. An error in
    it matters only if a perf test is left to run.
    """
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = None
        try:
            config.stash[_SETTINGS] = settings.resolve(options.from_config(config))
        except (ConfigError, pytest.UsageError) as error:
            config.stash[selection.WRONG] = str(error)
    return config.stash[_SETTINGS]


def activate(config: pytest.Config, items: Sequence[pytest.Item]) -> PerfState:
    """Make and return the session's state, once perf tests are left to run; return the same state when called again.

    Args:
        config: pytest's configuration of the session.
        items: The perf tests that are left.

    Raises:
        pytest.UsageError: The configuration is wrong, another plugin of this session would spoil the verdicts, or
            another session measures on the same GPUs or processors.
    """
    if state := config.stash.get(KEY, None):
        return state
    neighbours.refuse(config, items)
    chosen = resolved(config)
    if chosen is None:
        raise selection.wrong_configuration_error(config)

    def say(line: str) -> None:
        if config.pluginmanager.has_plugin("terminalreporter"):
            shown.rest()
            _print(config, f"kvcache: {line}")

    shown: Progress = Silent()
    cautions = neighbours.short_timeouts(config, items, chosen.profile)
    state = PerfState(chosen, say)
    expected = None
    if not config.getoption("collectonly"):
        asked = asked_of(items, chosen)
        expected = header.expected(state, asked)
        shown = state.progress = progress.chosen(
            _stream(config), say, verbosity=config.get_verbosity(), total_s=expected.total_s
        )
        if chosen.options.allow_suspect and chosen.options.update == "none":
            stores = f"{chosen.options.update_option} or {options.spelled(config, '--record-baselines')}"
            raise pytest.UsageError(f"--kv-allow-suspect: nothing is stored in this session: add {stores}")
        try:
            if chosen.options.update == "none" and chosen.options.against is None:
                gains.check_baselines(state, asked.gains)
            if chosen.options.update != "none":
                store.check_writable(chosen.options.baselines)
            pulling.pull_images(chosen, _stream(config), say, verbosity=config.get_verbosity())
            state.claim_machine()
        except (BaselineError, ConfigError, RunError) as error:
            raise pytest.UsageError(str(error)) from None
    config.stash[KEY] = state
    config.stash[hooks.KEY] = state.listener = hooks.Hooks(config, state)
    config.pluginmanager.register(SessionReport(state, cautions, expected), "kvcache-report")
    to_run = config.stash[_TO_RUN] = {item.nodeid for item in items}
    config.pluginmanager.register(_Interrupted(state, to_run), "kvcache-interrupted")
    if GithubReport.wanted(os.environ):
        others = config.pluginmanager.has_plugin("pytest_github_actions_annotate_failures")
        config.pluginmanager.register(GithubReport(state, items, os.environ, annotates=not others), _GITHUB)
    leaving = Leaving(lambda: state.campaign.busy, state.close)
    config.add_cleanup(leaving.restore)
    restore = signals.end_like_ctrl_c(
        lambda name: pytest.exit(leaving.reason or f"{name} received", returncode=143),
    )
    config.add_cleanup(restore)
    return state


def _stream(config: pytest.Config) -> TextIO | None:
    """Return what pytest's terminal writes to, past all capturing; None without one."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return None
    file: TextIO = reporter._tw._file  # it has no public name
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        if not file.isatty():
            return file
        own = open(os.dup(file.fileno()), "w", encoding=file.encoding, errors=file.errors)  # noqa: PTH123, SIM115
    config.add_cleanup(own.close)
    return own


def _print(config: pytest.Config, line: str) -> None:
    """Print a line to the session's own output, and not to a test's."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        shown = showable(line, sys.stdout)
        if reporter is None:
            print(shown, flush=True)
        else:
            reporter.ensure_newline()
            reporter.write_line(shown)


#: Node ids of the perf tests that have not ended.
_TO_RUN = pytest.StashKey[set[str]]()


class _Interrupted:
    """Fails tests on the shared pair of an interrupted tier with a short reason, and notes which tests have ended.

    pytest keeps the first error of a session-scoped fixture, and would show all of it in each of these tests.
    """

    def __init__(self, state: PerfState, to_run: set[str]) -> None:
        self._campaign, self._to_run = state.campaign, to_run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail a test on the pair of an interrupted tier before any fixture is made."""
        found = self._campaign.interruptions.get(_tier_of(item))
        if found is not None and "vllm_pair" in getattr(item, "fixturenames", ()):
            pytest.fail(str(found), pytrace=False)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note that a test has ended."""
        self._to_run.discard(nodeid)


def parametrize(metafunc: pytest.Metafunc, asked: Sequence[str]) -> bool:
    """Parametrize a test with tiers (session scope), contexts and gates, as far as it asks the plugin for them.

    The values are names and numbers: reports (Allure, pytest-benchmark) store them, and recognise a test by them.

    Args:
        metafunc: The test function.
        asked: The parameters that the plugin has to give to it.

    Returns:
        False where the configuration is wrong, so that there are no values to give.
    """
    if wrong := parameters.too_short_for_a_pair(metafunc):
        pytest.fail(f"{metafunc.definition.nodeid}: {wrong}", pytrace=False)
    chosen = resolved(metafunc.config)
    if chosen is None:
        return False
    if "kv_tier" in asked:
        metafunc.parametrize("kv_tier", [tier.name for tier in chosen.tiers], indirect=True, scope="session")
    if "kv_context" in asked:
        metafunc.parametrize("kv_context", chosen.profile.workload.context_tokens, indirect=True)
    if "kv_gate" in asked:
        names = dict.fromkeys(gate.short for gate in values.gates(chosen.profile))
        metafunc.parametrize("kv_gate", list(names), indirect=True)
    return True


def without_gains_of_others(items: list[pytest.Item], ours: Collection[pytest.Item], config: pytest.Config) -> None:
    """Remove from `items` tests of a gain that the profile does not declare for their tier.

    They exist because every tier is parametrized with all gates.
    """
    chosen = resolved(config)
    if chosen is None or not chosen.profile.gates.gains:
        return
    declared = {(gain.tier, gain.short) for gain in chosen.profile.gates.declared_gains()}
    names = {name for _, name in declared}

    def stays(item: pytest.Item) -> bool:
        name, tier = _params(item).get("kv_gate"), _tier_of(item)
        return item not in ours or not tier or name not in names or (tier, name) in declared

    items[:] = [item for item in items if stays(item)]


def order(items: list[pytest.Item], ours: Collection[pytest.Item]) -> None:
    """Order the tests of each tier: tests that boot pairs of their own come before tests that share one pair.

    So a shared pair never runs beside another pair. Tests that may measure several tiers (`kv_measure`) come before all
    other perf tests. Tests that are not in `ours` stay where they are.

    Args:
        items: All tests of the session, ordered in place.
        ours: The perf tests among them.
    """
    tiers = {tier: n for n, tier in enumerate(dict.fromkeys(_tier_of(item) for item in items if item in ours))}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        names = getattr(item, "fixturenames", ())
        return "kv_measure" not in names, tiers[_tier_of(item)], "vllm_pair" in names

    turn = iter(sorted((item for item in items if item in ours), key=place))
    items[:] = [next(turn) if item in ours else item for item in items]


def prepare(ours: Sequence[pytest.Item]) -> None:
    """Give perf tests that use `kv_baseline` the clock that replays measured times to pytest-benchmark."""
    for item in ours:
        if "kv_baseline" in getattr(item, "fixturenames", ()):
            rows_of_benchmark.mark(item)


def selected_contexts(items: Sequence[pytest.Item], tier: Tier) -> list[int]:
    """Return the contexts (tokens) at which the session's tests measure `tier`, shortest first.

    No test names a tier that comes from a fixture of the project's own. For such a tier, tests that name none count.
    """
    named = [item for item in items if _tier_of(item) == tier.name]
    params = [_params(item) for item in named or items if _tier_of(item) in {"", tier.name}]
    lengths = {each.get("kv_context") for each in params}
    return sorted(length for length in lengths if isinstance(length, int) and not isinstance(length, bool))


def gain_contexts(items: Sequence[pytest.Item], gain: Gain) -> list[int]:
    """Return the contexts (tokens) at which tests check gains of `gain.tier` over `gain.over`, shortest first."""
    end = f"-over-{gain.over}"
    named = [_params(item) for item in items if _tier_of(item) == gain.tier]
    params = [each for each in named if str(each.get("kv_gate")).endswith(end)]
    return sorted({n for each in params if isinstance(n := each.get("kv_context"), int)})


def asked_of(items: Sequence[pytest.Item], chosen: Settings) -> header.Asked:
    """Return what tests ask for; one that names no tier or context may ask for each of the profile's."""
    contexts: dict[str, list[int]] = {}
    for tier in chosen.tiers:
        if any(_tier_of(item) in {tier.name, ""} for item in items):
            contexts[tier.name] = selected_contexts(items, tier) or list(chosen.profile.workload.context_tokens)
    by_gain = {gain: gain_contexts(items, gain) for gain in chosen.profile.gates.declared_gains()}
    return header.Asked(contexts, {gain: lengths for gain, lengths in by_gain.items() if lengths})


def _tier_of(item: pytest.Item) -> str:
    tier = _params(item).get("kv_tier", "")
    return str(getattr(tier, "name", tier))


def _params(item: pytest.Item) -> Mapping[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def finish(session: pytest.Session, exitstatus: int) -> None:
    """End the run, write its baselines unless the run was cut short, and call the report hook."""
    state = session.config.stash.get(KEY, None)
    if state is None:
        return
    state.close()
    ended = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
    # -x and --maxfail leave tests that never ran, and so may a plugin that ends the session with whatever exit code.
    early = not ended or bool(session.shouldfail or session.shouldstop or session.config.stash[_TO_RUN])
    _write(session, state, early=early)
    session.config.stash[hooks.KEY].ended(interrupted=early)
    github = session.config.pluginmanager.get_plugin(_GITHUB)
    if isinstance(github, GithubReport):
        github.tell(lambda line: _print(session.config, line))


def _write(session: pytest.Session, state: PerfState, *, early: bool) -> None:
    if early:
        if state.settings.options.update != "none":
            # This is said at once: pytest prints no summary where a signal or a plugin ended the session.
            state.say("no baseline was written: the session did not come to its end")
        return
    try:
        state.written = store.write_all(state.settings.options.baselines, state.campaign.writes)
    except BaselineError as error:
        state.say(str(error))
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def close(config: pytest.Config) -> None:
    """End the run, in whatever way the session ended."""
    state = config.stash.get(KEY, None)
    if state is not None:
        state.close()
