"""The plugin's lines in pytest's output: after collection, and in the summary."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence

import pytest

from pytest_kvcache.baselines import files
from pytest_kvcache.campaign.gains import GainResult
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import ConfigError, KvCacheError
from pytest_kvcache.report import benchmark as rows_of_benchmark
from pytest_kvcache.report import chart, compared, header, screen, series, terminal, verdict_file
from pytest_kvcache.report.balancer import balancer_lines
from pytest_kvcache.report.gpus import gpu_lines
from pytest_kvcache.report.html import document
from pytest_kvcache.report.ledger import LedgerRow, ledger_table, storage_table
from pytest_kvcache.showable import can_show, inert, showable

_SECTION = "kvcache"
#: All tables of a session, in the run's folder.
DETAILS = "details.txt"


class SessionReport:
    """The plugin's lines in pytest's output: after collection, and in the summary.

    Args:
        state: The session's.
        cautions: What of the session may spoil its verdicts, a line each.
        expected: What it takes, None where it only collects.
    """

    def __init__(self, state: PerfState, cautions: Sequence[str], expected: header.Expected | None = None) -> None:
        self._state, self._cautions, self._expected = state, cautions, expected

    def pytest_report_collectionfinish(self) -> list[str]:
        """Name what is measured, with what, where and for about how long, before the first test."""
        head = header.lines(self._state, self._expected)
        return [f"kvcache: {line}" for line in (*head, *(f"caution: {line}" for line in self._cautions))]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print one screen: a row a cell, what needs a person, and where all the rest is; with -v the rest too."""
        state = self._state

        def line(text: str) -> None:
            for each in inert(text).split("\n"):  # pytest would escape the line ends too of what it cannot show
                terminalreporter.line(showable(each, sys.stdout))

        results = state.campaign.measured
        if results:
            terminalreporter.section(f"{_SECTION}: {state.profile.name}")
            unused, attention = self._unused(results), list(screen.attention(results))
            details = [
                *self._blocks(results, unused),
                f"peak memory {state.peak_memory_bytes / 1e9:.1f} GB (PSS of all processes)",
            ]
            if terminalreporter.verbosity > 0:
                for block in details:
                    line(block)
                    line("")
            else:
                rows_of_benchmark.hide(terminalreporter.config)
            writer = terminalreporter._tw  # the terminal's width and colours have no public name
            glyphs = can_show(screen.GLYPHS, sys.stdout)
            for each in screen.table(results, width=writer.fullwidth, colour=writer.hasmarkup, glyphs=glyphs):
                terminalreporter.line(each if writer.hasmarkup else showable(each, sys.stdout))
            for each in (*attention, *self._gain_lines(), *self._baselines(unused), *self._page(results)):
                line(each)
            line(terminal.minutes(state.engine_minutes, state.fixed_minutes))
            self._keep([*details, *(["\n".join(attention)] if attention else [])])
        for each in gpu_lines(state.gpus):  # also of boots that failed: an XID may be why
            line(each)
        for interruption in state.campaign.interruptions.values():
            line(str(interruption))
        for each in state.hook_errors:
            line(each)
        for each in _undecided(state.undecided, whole=terminalreporter.verbosity > 0):
            line(each)
        if state.campaign.results or state.campaign.interruptions:  # also of boots that failed
            line(f"rows, counters and logs: {state.run.folder}")

    def _keep(self, details: list[str]) -> None:
        """Write all tables into the run's folder: what one screen has no room for is not lost."""
        path = self._state.run.folder / DETAILS
        with contextlib.suppress(OSError):  # the results themselves are there, and a full disk has been told
            path.write_text("\n\n".join(details) + "\n", encoding="utf-8", errors="backslashreplace")

    @property
    def _gains(self) -> list[GainResult]:
        """What was measured of gains."""
        found = self._state.campaign.gains.values()
        return [each for some in found if not isinstance(some, KvCacheError) for each in some]

    def _gain_lines(self) -> Iterator[str]:
        for gain in self._gains:
            where = f"{gain.gain.tier} over {gain.gain.over}, context {gain.context_tokens}"
            yield f"{gain.verdict.status}: {where}: {gain.line}"

    def _baselines(self, unused: Sequence[str]) -> Iterator[str]:
        """Yield what became of the baselines: how many were written, and how many this run did not use."""
        state = self._state
        if state.written:
            root, count = state.settings.options.baselines, len(state.written)
            yield f"baselines written to {root}: {count} cells (old -> new in {DETAILS})"
        if unused:
            yield f"{len(unused)} baselines that this run did not use (`pytest-kvcache baselines prune`)"

    def _blocks(self, results: list[CellResult], unused: Sequence[str]) -> Iterator[str]:
        state = self._state
        yield terminal.measured_table(results)
        yield terminal.client_table(results)
        proofs = [(r, r.runs[-1].proof) for r in results]
        rows = [LedgerRow(r.label, r.context_tokens, p.ledger, p.expected, p.storage) for r, p in proofs]
        yield f"where prompt tokens came from (expected in brackets):\n{ledger_table(rows)}"
        if table := storage_table(rows):
            yield f"what the storage says of it:\n{table}"
        yield "\n".join(terminal.probe_lines(results))
        yield "\n".join(balancer_lines(results, state.balancers))
        unchecked = [
            f"not proved: {r.label}, context {r.context_tokens}: {line}" for r, p in proofs for line in p.unchecked
        ]
        if unchecked:
            yield "\n".join(unchecked)
        for each in results:
            if moved := terminal.explanation(each):
                yield f"{each.label}, context {each.context_tokens}: {each.outcome}: {moved}"
        if lines := terminal.declared_gates(results, self._gains):
            yield lines
        for against in series.YARDSTICKS:
            if table := terminal.tiers_table(results, against=against):
                yield f"against {against}:\n{table}"
        if len({result.context_tokens for result in results}) > 1:
            yield from self._chart()
        if state.written:
            table = self._updates(results)
            yield f"baselines written to {state.settings.options.baselines}:\n{table}"
        if unused:
            yield "\n".join(["baselines that this run did not use (`pytest-kvcache baselines prune`):", *unused])

    def _chart(self) -> Iterator[str]:
        """Tell tables and chart against the context length; a chart that cannot be drawn hides nothing else."""
        folder = self._state.run.folder
        try:
            measured = series.read([folder])
            yield from compared.best_tables(measured)
            yield f"chart: {chart.draw(measured, folder / 'chart.svg')}"
        except (ConfigError, OSError) as error:
            yield f"no chart: {error}"

    def _page(self, results: list[CellResult]) -> Iterator[str]:
        """Leave verdicts and the HTML report in the run's folder; what cannot be written hides nothing else."""
        folder = self._state.run.folder
        try:
            verdict_file.write(folder, results, self._gains)
            yield f"report: {document.of_session(folder)}"
        except series.NothingMeasuredError:
            pass  # the tables say why
        except (ConfigError, OSError, ValueError) as error:
            yield f"no report: {error}"

    def _updates(self, results: list[CellResult]) -> str:
        rules = self._state.profile.rules
        return terminal.updates(
            results,
            family=self._state.settings.family,
            policy=self._state.profile.policy,
            baseline_boots=rules.baseline_boots,
        )

    def _unused(self, results: list[CellResult]) -> list[str]:
        """Return the baselines of this profile and machine that a run of everything left out."""
        chosen = self._state.settings
        lengths = chosen.profile.workload.context_tokens
        measured = {(result.cell.tier, result.context_tokens) for result in results}
        everything = measured.issuperset(itertools.product(chosen.catalogue.tiers, lengths))
        root = chosen.options.baselines
        if not everything or not root.is_dir():
            return []
        return [f"  {found.path}" for found in files.unused(files.scan(root), [r.cell for r in results])]


def _undecided(tests: Sequence[tuple[str, str, str]], *, whole: bool) -> Iterator[str]:
    """Yield a line for each test without a decision, or for all that have the same reason."""
    alike: dict[tuple[str, str], list[str]] = {}
    for nodeid, status, reason in tests:
        alike.setdefault((status, nodeid if whole else reason), []).append(f"{nodeid} - {reason}" if whole else nodeid)
    for (status, reason), found in alike.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"{status.upper()} {found[0]}{more}" + ("" if whole else f" - {reason}")
