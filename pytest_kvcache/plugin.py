"""The plugin's pytest hooks, which call other modules. Nothing heavy is imported unless perf tests are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache import hookspecs, options, parameters, selection
from pytest_kvcache.campaign.key import KEY
from pytest_kvcache.fixtures import (
    NoBenchmark,
    _kv_benchmark_clock,
    kv_baseline,
    kv_context,
    kv_gate,
    kv_load,
    kv_measure,
    kv_profile,
    kv_tier,
    multi_round_qa,
    vllm_pair,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "_kv_benchmark_clock",
    "kv_baseline",
    "kv_context",
    "kv_gate",
    "kv_load",
    "kv_measure",
    "kv_profile",
    "kv_tier",
    "multi_round_qa",
    "vllm_pair",
]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that other plugins may implement."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register options and ini keys."""
    options.add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Iterator[None]:
    """Register the short names of options, after every plugin and conftest.py has registered its own options."""
    yield
    options.add_short_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and a stand-in for pytest-benchmark where it is not there."""
    config.addinivalue_line("markers", "perf: measures a KV cache tier on real servers (run with -m perf or --kv-tier)")
    if not any(config.pluginmanager.hasplugin(name) for name in ("benchmark", "codspeed")):
        config.pluginmanager.register(NoBenchmark(), "kvcache-no-benchmark")


# Runs after all other hooks of its kind, so that the parameters that a test's author gives are known and kept.
@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that ask for `kv_tier`, `kv_context` and `kv_gate`."""
    if selection.FIXTURES.isdisjoint(metafunc.fixturenames):
        return
    asked = parameters.asked(metafunc)
    asked_for = selection.is_asked_for(metafunc.definition, metafunc.config, marked=True)
    if asked_for and not hasattr(metafunc.config, "workerinput"):
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        if activation.parametrize(metafunc, asked):
            return
    for name in asked:
        metafunc.parametrize(name, [pytest.param(None, id="inactive")], indirect=True)


# Runs after pytest and other plugins have deselected tests.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave perf tests out unless they were asked for, and order those that were."""
    ours = [item for item in items if selection.is_ours(item)]
    if not ours:
        return
    left_out = {item for item in ours if not _is_wanted(item, config)}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=[item for item in ours if item in left_out])
        config.stash[selection.LEFT_OUT] = len(left_out)
    wanted = {item for item in ours if item not in left_out and selection.is_asked_for(item, config)}
    if wanted:
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.without_gains_of_others(items, wanted, config)
        activation.order(items, wanted)


def _is_wanted(item: pytest.Item, config: pytest.Config) -> bool:
    """Return whether a test of ours stays; workers of pytest-xdist drop those asked for, and the controller says so."""
    asked_for = selection.is_asked_for(item, config)
    if asked_for and hasattr(config, "workerinput"):
        config.stash[selection.REFUSED] = True
        return False
    return asked_for or not item.get_closest_marker(options.MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Check all configuration and make the session's state, where perf tests are left to run."""
    config = session.config
    wanted = [item for item in session.items if selection.is_ours(item) and selection.is_asked_for(item, config)]
    if wanted:
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.activate(config, wanted)
        activation.prepare(wanted)
    elif not session.items and selection.names_node_ids(config) and selection.wrong_configuration(config):
        raise selection.wrong_configuration_error(config)  # without tiers no test has a name like that of the node id
    elif not session.testsfailed and not selection.is_distributed(config) and (wanted_for := _unused_option(config)):
        raise pytest.UsageError(wanted_for)


def _unused_option(config: pytest.Config) -> str:
    """Return an error on an option that has no effect as no perf test is selected; "" where none is given."""
    option, tier = options.wanted_of_perf_tests(config), options.spelled(config, "--tier")
    return f"{option}: no perf test is selected: add -m perf or {tier} NAME" if option else ""


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Show an inconclusive or incomparable test as such, and not as passed."""
    return options.undecided_status(report)


# The innermost wrapper, which runs after all fixtures are torn down and before the terminal's summary.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """End the run, then write its baselines; in a distributed session, refuse perf tests."""
    try:
        yield
    finally:
        selection.tell_controller(session.config)
        if session.config.stash.get(KEY, None) is not None:
            from pytest_kvcache import activation  # noqa: PLC0415 - heavy

            activation.finish(session, exitstatus)
        elif selection.is_controller(session.config):
            if not session.config.stash.get(selection.REFUSED, False):
                session.config.stash[selection.NOTHING] = _unused_option(session.config)
            if selection.REFUSED in session.config.stash or session.config.stash[selection.NOTHING]:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Note that perf tests were selected in a worker of pytest-xdist."""
    if getattr(node, "workeroutput", {}).get(selection.OUTPUT):
        node.config.stash[selection.REFUSED] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why perf tests were refused or left out, where somebody may have meant to run them."""
    for line in selection.lines(config, options.spelled(config, "--tier")):
        terminalreporter.line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run, in whatever way the session ended."""
    if config.stash.get(KEY, None) is not None:
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.close(config)
