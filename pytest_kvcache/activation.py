"""What the plugin does once perf tests were asked for; `plugin.py` calls it, and imports it only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest

from pytest_kvcache import options, settings
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.errors import BaselineError, ConfigError
from pytest_kvcache.proof.tables import LedgerRow, ledger_table, storage_table
from pytest_kvcache.report import benchmark as rows_of_benchmark
from pytest_kvcache.report import chart, series, terminal
from pytest_kvcache.report.gpus import gpu_lines
from pytest_kvcache.runs import signals
from pytest_kvcache.state import KEY, PerfState
from pytest_kvcache.tiers.base import Tier
from pytest_kvcache.verdict import shelf, store
from pytest_kvcache.verdict.looks import Policy
from pytest_kvcache.verdict.metrics import JUDGED

_SECTION = "kvcache"
_NO_RERUNS = "perf tests are not run again when they fail: a verdict that is repeated until it passes is none"


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
        state, out = self._state, terminalreporter
        results = [each for each in state.results.values() if isinstance(each, CellResult)]
        if results:
            out.section(f"{_SECTION}: {state.profile.name}")
            for block in self._blocks(results):
                out.line(block)
                out.line("")
            out.line(f"peak memory {state.peak_memory_bytes / 1e9:.1f} GB (PSS of all processes of the run)")
        for line in gpu_lines(state.gpus):  # also of boots that failed: an XID may be why
            out.line(line)
        if state.results:  # also of boots that failed
            out.line(f"rows, counters and logs: {state.run.folder}")
        if state.cut_short:
            out.line("no baseline was written: the session did not come to its end")
        for nodeid, status, reason in state.undecided:
            out.line(f"{status.upper()} {nodeid} - {reason}")

    def _blocks(self, results: list[CellResult]) -> Iterator[str]:
        state = self._state
        yield terminal.measured_table(results)
        yield terminal.client_table(results)
        proofs = [(r, r.runs[-1].proof) for r in results]
        rows = [LedgerRow(r.label, r.context_tokens, p.ledger, p.expected, p.storage) for r, p in proofs]
        yield f"where prompt tokens came from (expected in brackets):\n{ledger_table(rows)}"
        if table := storage_table(rows):
            yield f"what the storage says of it:\n{table}"
        yield "\n".join(terminal.probe_lines(results))
        unchecked = [
            f"not proved: {r.label}, context {r.context_tokens}: {line}" for r, p in proofs for line in p.unchecked
        ]
        if unchecked:
            yield "\n".join(unchecked)
        suspicions = [
            f"suspect: {r.label}, context {r.context_tokens}: {line}" for r in results for line in r.suspicions
        ]
        if suspicions:
            yield "\n".join(suspicions)
        for each in results:
            if moved := terminal.explanation(each):
                yield f"{each.label}, context {each.context_tokens}: {each.outcome}: {moved}"
        for against in series.YARDSTICKS:
            if table := terminal.tiers_table(results, against=against):
                yield f"against {against}:\n{table}"
        yield from self._chart()
        if state.written:
            table = terminal.updates(state.writes, self._rules())
            yield f"baselines written to {state.settings.options.baselines}:\n{table}"
        unused = self._unused(results)
        if unused:
            yield "\n".join(["baselines that this run did not use (`pytest-kvcache baselines prune`):", *unused])
        yield terminal.minutes(state.engine_minutes, state.fixed_minutes)

    def _chart(self) -> Iterator[str]:
        """Draw the chart; that it cannot be drawn hides nothing else of the summary."""
        folder = self._state.run.folder
        try:
            measured = series.read([folder])
            if measured["context_tokens"].nunique() > 1:
                yield from series.best_tables(series.means(measured))
            yield f"chart: {chart.draw(measured, folder / 'chart.svg')}"
        except (ConfigError, OSError) as error:
            yield f"no chart: {error}"

    def _rules(self) -> tuple[int, Policy]:
        return self._state.settings.family, self._state.profile.rules.policy()

    def _unused(self, results: list[CellResult]) -> list[str]:
        """Return the baselines of this profile and machine that a run of everything left out."""
        chosen = self._state.settings
        everything = len(results) == len(chosen.catalogue.tiers) * len(chosen.profile.workload.context_tokens)
        root = chosen.options.baselines
        if not everything or not root.is_dir():
            return []
        return [f"  {found.path}" for found in shelf.unused(shelf.scan(root), [r.cell for r in results])]


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
                reporter.write_line(f"kvcache: {line}")

    state = PerfState(chosen, say)
    config.stash[KEY] = state
    config.pluginmanager.register(SessionReport(state), "kvcache-report")
    restore = signals.end_like_ctrl_c(lambda name: pytest.exit(f"{name} received", returncode=143))
    config.add_cleanup(restore)


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test its tiers (session scope), its contexts and its gates."""
    chosen = metafunc.config.stash[KEY].settings
    if "kv_tier" in metafunc.fixturenames:
        tiers = chosen.tiers
        metafunc.parametrize("kv_tier", tiers, ids=[t.name for t in tiers], indirect=True, scope="session")
    if "kv_context" in metafunc.fixturenames:
        lengths = chosen.profile.workload.context_tokens
        metafunc.parametrize("kv_context", lengths, ids=[str(n) for n in lengths], indirect=True)
    if "kv_gate" in metafunc.fixturenames:
        metafunc.parametrize("kv_gate", JUDGED, ids=[metric.short for metric in JUDGED], indirect=True)


def prepare(items: list[pytest.Item]) -> None:
    """Refuse what would rerun perf tests, give the others their benchmark clock, and order those of a tier.

    Raises:
        pytest.UsageError: A perf test is marked to be run again when it fails.
    """
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "kv_baseline" in names:
            if item.get_closest_marker("flaky"):
                raise pytest.UsageError(f"{item.nodeid}: {_NO_RERUNS}")
            rows_of_benchmark.mark(item)
    # Tests that boot pairs of their own come before those that share one, so that the two never run side by side.
    order = {tier: n for n, tier in enumerate(dict.fromkeys(_tier_of(item) for item in items))}
    items.sort(key=lambda item: (order[_tier_of(item)], "vllm_pair" in getattr(item, "fixturenames", ())))


def selected_contexts(items: Sequence[pytest.Item], tier: Tier) -> list[int]:
    """Return the contexts at which the session's tests measure `tier`, in the profile's order."""
    params = [item.callspec.params for item in items if hasattr(item, "callspec") and _tier_of(item) == tier.name]
    found = {each["kv_context"] for each in params if "kv_context" in each}
    return sorted(found)


def _tier_of(item: pytest.Item) -> str:
    tier = getattr(item, "callspec", None) and item.callspec.params.get("kv_tier")  # type: ignore[attr-defined]
    return tier.name if tier is not None else ""


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
