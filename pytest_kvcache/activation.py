"""What the plugin does once perf tests were asked for; `plugin.py` calls it, and imports it only then."""

from __future__ import annotations

import contextlib

import pytest

from pytest_kvcache import options, settings
from pytest_kvcache.errors import BaselineError, ConfigError
from pytest_kvcache.report import terminal
from pytest_kvcache.runs import signals
from pytest_kvcache.state import KEY, PerfState
from pytest_kvcache.verdict import baseline

_SECTION = "kvcache"
#: The article's table holds the pNFS tier against these two.
_YARDSTICKS = ("gpu", "cpu")


class SessionReport:
    """The plugin's lines in pytest's header and summary.

    Args:
        state: The session's.
    """

    def __init__(self, state: PerfState) -> None:
        self._state = state

    def pytest_report_header(self) -> str:
        """Name profile, tiers and configuration file."""
        chosen = self._state.settings
        source = chosen.catalogue.source or "built in"
        tiers = ", ".join(tier.name for tier in chosen.tiers)
        return f"kvcache: profile {chosen.profile.name}, tiers {tiers} (configuration: {source})"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print what was measured, each tier against the first two, and what became of the baselines."""
        state = self._state
        reports = list(state.reports.values())
        if not reports:
            return
        out = terminalreporter
        out.section(f"{_SECTION}: {state.profile.name}")
        out.line(terminal.measured_table(reports))
        out.line("")
        out.line(terminal.client_table(reports))
        for report in reports:
            for line in report.result.suspicions:
                out.line(f"suspect: {report.result.label}, context {report.result.context_tokens}: {line}")
        for against in _YARDSTICKS:
            table = terminal.tiers_table(reports, against=against)
            if table:
                out.line("")
                out.line(f"against {against}:")
                out.line(table)
        if state.written:
            out.line("")
            out.line(f"baselines written to {state.settings.options.baselines}:")
            out.line(terminal.updates_table(reports))
        elif state.writes:
            out.line("")
            out.line("no baseline was written: the session did not come to its end")
        out.line("")
        out.line(f"peak memory {state.peak_memory_bytes / 1e9:.1f} GB (PSS of all processes of the run)")
        out.line(f"rows, counters and logs: {state.run.folder}")


def activate(config: pytest.Config) -> None:
    """Check all configuration, register the fixtures and make the session's state.

    Raises:
        pytest.UsageError: The configuration is wrong, or the session is distributed.
    """
    _refuse_xdist(config)
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
                reporter.write_line(f"kvcache: {line}")

    state = PerfState(chosen, say)
    config.stash[KEY] = state
    config.pluginmanager.register(SessionReport(state), "kvcache-report")
    restore = signals.end_like_ctrl_c(lambda name: pytest.exit(f"{name} received", returncode=143))
    config.add_cleanup(restore)


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test its tiers (session scope: one boot a tier) and its contexts."""
    chosen = metafunc.config.stash[KEY].settings
    if "kv_tier" in metafunc.fixturenames:
        tiers = chosen.tiers
        metafunc.parametrize("kv_tier", tiers, ids=[t.name for t in tiers], indirect=True, scope="session")
    if "kv_context" in metafunc.fixturenames:
        lengths = chosen.profile.workload.context_tokens
        metafunc.parametrize("kv_context", lengths, ids=[str(n) for n in lengths], indirect=True)


def finish(session: pytest.Session, exitstatus: int) -> None:
    """End the run, then write the baselines that it is to leave, unless it was cut short."""
    state = session.config.stash.get(KEY, None)
    if state is None:
        return
    state.close()
    if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        return
    try:
        state.written = baseline.write_all(state.settings.options.baselines, state.writes)
    except BaselineError as error:
        state.say(str(error))
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def close(config: pytest.Config) -> None:
    """End the run however the session ended."""
    state = config.stash.get(KEY, None)
    if state is not None:
        state.close()


def _refuse_xdist(config: pytest.Config) -> None:
    workers = config.getoption("numprocesses", None)
    if workers or hasattr(config, "workerinput"):
        raise pytest.UsageError(
            "perf tests measure one pair at a time and cannot be distributed: leave out -n, or -m perf / --tier"
        )
