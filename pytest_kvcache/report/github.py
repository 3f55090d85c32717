"""What a session tells GitHub Actions: its table and chart on the page of the run, and annotations of failed gates.

Both are asked for by the variables that the runner sets, `GITHUB_STEP_SUMMARY` and `GITHUB_ACTIONS`. A session that
cannot tell its results there still has them: whatever goes wrong is a warning.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.report import cells, compared, markdown, series, step_summary, terminal
from pytest_kvcache.report.workflow_commands import Annotation, limited

#: Verdicts of failed tests that say nothing of the change itself.
_NO_VERDICT = frozenset({"invalid", "inconclusive", "incomparable"})
#: The figures that the page has a chart of; the table has all of them.
_CHARTS = series.FIGURES[:2]
_ADDRESS = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")


class GithubReport:
    """Notes what tests come to, and tells it when the session has ended.

    Args:
        state: The session's state.
        items: The perf tests of the session.
        environ: The caller's environment.
        annotates: Whether failed tests are to be annotated: not where another plugin does.
    """

    def __init__(
        self, state: PerfState, items: Sequence[pytest.Item], environ: Mapping[str, str], *, annotates: bool = True
    ) -> None:
        self._state, self._environ, self._annotates = state, environ, annotates
        self._items = {item.nodeid: item for item in items}
        self._found: list[Annotation] = []
        self._lines: list[str] = []

    @staticmethod
    def wanted(environ: Mapping[str, str]) -> bool:
        """Return whether a session of this environment has anything to tell."""
        return environ.get("GITHUB_ACTIONS") == "true" or bool(environ.get("GITHUB_STEP_SUMMARY"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a perf test that failed, or that ended without a decision."""
        item = self._items.get(report.nodeid)
        if item is None:
            return
        verdict = str(dict(report.user_properties).get("kv_verdict", "failed"))
        undecided = [reason for nodeid, _, reason in self._state.undecided if nodeid == report.nodeid]
        if report.failed:
            self._note(item, "warning" if verdict in _NO_VERDICT else "error", verdict, _why(report), failed=True)
        elif report.when == "call" and undecided:
            self._note(item, "warning", verdict, undecided[-1])

    def _note(
        self, item: pytest.Item, level: Literal["error", "warning"], word: str, message: str, *, failed: bool = False
    ) -> None:
        self._lines.append(f"- **{markdown.escaped(word)}**: {markdown.escaped(_first_line(item.name, message))}")
        if self._annotates or not failed:
            self._found.append(self._annotation(item, level, f"{word}: {item.name}", message))

    def _annotation(
        self, item: pytest.Item | None, level: Literal["error", "warning"], title: str, message: str
    ) -> Annotation:
        if item is None:
            return Annotation(level, title, message)
        path, line, _ = item.location
        return Annotation(level, title, message, self._in_repository(item.config.rootpath / path), (line or 0) + 1)

    def _in_repository(self, path: Path) -> str:
        """Return a file's path as the repository has it, or in full where it lies elsewhere."""
        root = self._environ.get("GITHUB_WORKSPACE")
        path = Path(os.path.normpath(path))
        if root:
            for base, file in ((Path(root), path), (Path(root).resolve(), path.resolve())):
                with contextlib.suppress(ValueError):
                    return file.relative_to(base).as_posix()
        return path.as_posix()

    def tell(self, write: Callable[[str], None]) -> None:
        """Write the annotations to the log, and the page to the summary's file.

        Args:
            write: Writes a line to the log.
        """
        try:
            if self._environ.get("GITHUB_ACTIONS") == "true":
                annotations = limited([*self._found, *self._of_the_session()])
                # The signs of quiet sessions may stand on the line, and the runner reads commands at its beginning.
                for line in ("", *(each.command for each in annotations)) if annotations else ():
                    write(line)
            campaign = self._state.campaign
            anything = bool(self._lines or campaign.measured or campaign.interruptions)
            if anything and (target := self._environ.get("GITHUB_STEP_SUMMARY")):
                step_summary.append(Path(target), self.blocks())
        except Exception as error:  # a page that cannot be written must cost no session its verdicts
            said = str(error) or type(error).__name__
            self._state.say(
                f"warning: the summary for GitHub was not written: {said}; all of it is in the run's folder"
            )

    def _of_the_session(self) -> list[Annotation]:
        """Return a warning for each cell with doubtful times, and an error for each tier that was interrupted."""
        found = [
            self._annotation(
                self._item_of(result),
                "warning",
                f"suspect: {result.label}, context {result.context_tokens}",
                "\n".join(result.suspicions),
            )
            for result in self._state.campaign.measured
            if result.suspicions
        ]
        found += [
            Annotation("error", f"interrupted: {tier}", str(error))
            for tier, error in self._state.campaign.interruptions.items()
        ]
        return found

    def _item_of(self, result: CellResult) -> pytest.Item | None:
        """Return the first test of a cell, None where tests name their tiers themselves."""
        for item in self._items.values():
            params = item.callspec.params if hasattr(item, "callspec") else {}
            tier = params.get("kv_tier")
            if (getattr(tier, "name", tier), params.get("kv_context")) == (result.cell.tier, result.context_tokens):
                return item
        return None

    def blocks(self) -> list[step_summary.Block]:
        """Return the page, in the order in which it is to be kept where not all of it has room."""
        state, results = self._state, self._state.campaign.measured
        counted = ", ".join(f"{n} {word}" for word, n in Counter(result.outcome for result in results).items())
        title = f"KV cache tiers: {state.profile.name}"
        head = [f"### {markdown.escaped(title)}", "", f"**{markdown.escaped(counted or 'nothing was measured')}**"]
        found = [step_summary.Block([*head, "", self._where()])]
        if results:
            found.append(step_summary.Block(markdown.table([_cell(result) for result in results]), cut_at=2))
        suspect = [
            f"- **suspect**: {markdown.escaped(f'{r.label}, context {r.context_tokens}: {line}')}"
            for r in results
            for line in r.suspicions
        ]
        stopped = [f"- **interrupted**: {markdown.escaped(str(e))}" for e in state.campaign.interruptions.values()]
        if lines := [*self._lines, *suspect, *stopped]:
            found.append(step_summary.Block(lines, cut_at=0))
        if results:
            found += self._charts()
        if state.written:
            rules = state.profile.rules
            updates = terminal.updates(
                results, family=state.settings.family, policy=state.profile.policy, baseline_boots=rules.baseline_boots
            )
            found.append(step_summary.Block(["Baselines, old to new:", "", *markdown.fenced(updates)]))
        return found

    def _charts(self) -> list[step_summary.Block]:
        """Return the article's chart, and the most that tiers gained; no chart hides nothing else."""
        try:
            rows = series.read([self._state.run.folder])
        except (KvCacheError, OSError) as error:
            return [step_summary.Block([f"No chart: {markdown.escaped(str(error))}"])]
        means = series.means(rows)
        blocks = [_chart(figure, means, f"{rows['model'].iloc[0]}: {rows['workload'].iloc[0]}") for figure in _CHARTS]
        for against in series.YARDSTICKS:
            if found := compared.changes(rows, against=against):
                told = [
                    {str(key): str(value) for key, value in row.items()}
                    for row in compared.best_table(found).to_dict("records")
                ]
                blocks.append([f"At best, against {against}:", "", *markdown.table(told)])
        return [step_summary.Block(block) for block in blocks if block]

    def _where(self) -> str:
        """Return where the rest is: the artefacts of the run that has this address."""
        rest = f"{self._state.engine_minutes:.1f} engine minutes. Rows, counters, logs and the chart as a file"
        server, repository, run = (self._environ.get(name, "") for name in _ADDRESS)
        if (
            re.fullmatch(r"https?://[\w.:-]+", server)
            and re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
            and run.isdigit()
        ):
            return f"{rest}: [artefacts of this run]({server}/{repository}/actions/runs/{run}#artifacts)"
        folder = self._state.run.folder if self._state.has_run else "the folder of runs"
        return f"{rest}: {markdown.escaped(str(folder))}"


def _chart(figure: series.Figure, means: pd.DataFrame, title: str) -> list[str]:
    lines = {
        str(label): dict(zip(rows["context_tokens"].astype(int), rows[figure.key].astype(float), strict=True))
        for label, rows in means.groupby("label", sort=False)
    }
    block, lacking = markdown.xychart(title, unit=figure.label, lines=lines)
    return [*block, *(part for line in lacking for part in ("", markdown.escaped(line)))]


def _cell(result: CellResult) -> dict[str, str]:
    """Return a row of the page's table: the columns of the screen at a session's end, and some more."""
    figures = result.estimates
    return {
        "tier": result.label,
        "context": str(result.context_tokens),
        "TTFT p50 s": cells.seconds(figures, "ttft_p50_s"),
        "p99 s": cells.seconds(figures, "ttft_p99_s"),
        "tokens/s": cells.whole(figures, "tokens_per_s"),
        "decode tokens/s": cells.whole(figures, "decode_tokens_per_s"),
        "from a cache": markdown.bar(figures.get("cached_share")),
        "against baseline (+ is worse)": cells.change(result),
        "boots": str(len(result.runs)),
        "verdict": cells.verdict(result) + (", suspect" if result.suspicions else ""),
    }


def _why(report: pytest.TestReport) -> str:
    """Return why a test failed: the message of a verdict, or that of an exception without its traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", None) or report.longreprtext or "failed")


def _first_line(name: str, message: str) -> str:
    return f"{name}: {message.strip().partition(chr(10))[0][:1000]}"
