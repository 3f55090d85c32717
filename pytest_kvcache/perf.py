"""What the fixtures do: check a tier, boot its pair, run the workload, hold the result against its baseline."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvcache.errors import KvCacheError, TierUnavailableError
from pytest_kvcache.load import runner
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.runner import RunResult
from pytest_kvcache.report import terminal
from pytest_kvcache.report.rows import CellReport
from pytest_kvcache.runs import signals
from pytest_kvcache.serving import pair as pairs
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.serving.plan import build_plan
from pytest_kvcache.state import PerfState
from pytest_kvcache.tiers.base import Tier
from pytest_kvcache.verdict import baseline as baselines
from pytest_kvcache.verdict.baseline import Baseline, Cell, Write
from pytest_kvcache.verdict.decide import Measurement, decide
from pytest_kvcache.verdict.environment import comparability, machine_name

#: Users of one workload are numbered from a multiple of this, so that workloads on one boot share no user context.
_USERS_APART = 100_000


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """Turn an error meant for the person at the terminal into a failure without a traceback."""
    told = ""
    try:
        yield
    except KvCacheError as error:
        told = str(error)
    # Outside of the except block: pytest would show the error a second time as the cause of the failure.
    if told:
        pytest.fail(told, pytrace=False)


def usable(tier: Tier, state: PerfState) -> Tier:
    """Return `tier` where it can run here; skip the test where not, or fail it where --tier names the tier."""
    with _told_plainly():
        reason = tier.unavailable(state.tier_context())
        if reason is not None and state.settings.asked_by_name(tier):
            raise TierUnavailableError(f"cannot run here: {reason}", where=f"tier {tier.name}")
    if reason is not None:
        pytest.skip(f"tier {tier.name} cannot run here: {reason}")
    return tier


@contextlib.contextmanager
def booted(tier: Tier, state: PerfState) -> Iterator[ServingPair]:
    """Boot a pair on `tier`, and stop it."""
    with _told_plainly():
        pair = _boot(tier, state)
    try:
        state.run.note_shared_memory()
        state.say(f"{pair.label}: {state.profile.servers} servers ready in {pair.boot_s:.0f} s")
        yield pair
    finally:
        state.launcher.stop(list(pair.handles))


def _boot(tier: Tier, state: PerfState) -> ServingPair:
    tier_plan = tier.plan(state.tier_context())
    for folder in tier_plan.folders:
        with signals.deferred():
            state.run.own_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
    plan = build_plan(
        state.profile,
        tier_plan,
        tools=state.engine,
        model=_linked_model(state),
        port=state.run.ports.take,
        scratch=state.run.scratch,
    )
    logs = state.tier_folder(tier.name) / "logs"
    return pairs.boot(plan, state.launcher, logs, timeout_s=state.profile.boot_timeout_s)


@dataclass(frozen=True)
class MultiRoundQa:
    """Runs the workload against a pair.

    Args:
        state: The session's.
        tier: What the pair serves with.
        pair: Running.
    """

    state: PerfState
    tier: Tier
    pair: ServingPair

    def __call__(self, *, context_tokens: int) -> RunResult:
        """Run it with user contexts of `context_tokens` and return what was measured."""
        state, pair = self.state, self.pair
        number = state.next_workload()
        with _told_plainly():
            folder = _new_folder(state.tier_folder(self.tier.name) / f"context-{context_tokens}")
            plan = LoadPlan(
                base_url=pair.base_url,
                model=pair.model,
                workload=state.profile.workload,
                context_tokens=context_tokens,
                first_user=number * _USERS_APART,
                tokenizer_url=next(iter(pair.plan.server_urls.values())),
                metrics_urls=pair.plan.metrics_urls,
                rows=folder / runner.ROWS,
                summary=folder / runner.LOAD,
            )
            result = runner.run_load(
                pair,
                plan,
                state.launcher,
                tier=self.tier.name,
                folder=folder,
                comparability=comparability(
                    state.profile,
                    context_tokens=context_tokens,
                    model_id=_model_id(state),
                    hardware=state.hardware,
                    storage=pair.plan.tier.facts,
                    launcher="process",
                ),
                versions=state.engine.versions,
            )
        state.reports[result.folder] = CellReport(_cell(state, result), result)
        return result


@dataclass(frozen=True)
class BaselineCheck:
    """Holds results against stored baselines.

    Args:
        state: The session's.
    """

    state: PerfState

    def check(self, result: RunResult) -> None:
        """Compare `result` with its cell, or store it where the session was asked to.

        Fails the test unless the verdict is `pass` or `improved`, or the figures became the baseline.
        """
        state = self.state
        cell = _cell(state, result)
        root = state.settings.options.baselines
        with _told_plainly():
            stored = None if state.settings.options.update == "all" else baselines.read(cell.path(root))
            if state.settings.options.update == "all":
                with contextlib.suppress(KvCacheError):  # a damaged file is what an update repairs
                    stored = baselines.read(cell.path(root))
        measured = Measurement(result.estimates, result.comparability, result.faults)
        verdict = decide(measured, stored, state.profile.tolerance.model_dump())
        write = verdict.status != "invalid" and (
            state.settings.options.update == "all"
            or (state.settings.options.update == "missing" and verdict.status == "no-baseline")
        )
        report = CellReport(cell, result, verdict, stored=stored, written=write)
        state.reports[result.folder] = report
        if write:
            state.writes.append(Write(cell, _baseline(state, result), stored))
        elif not verdict.succeeds:
            others = list(baselines.elsewhere(root, cell))
            message = terminal.failure(report, verdict, refresh=_refresh_command(state, result.tier), others=others)
            pytest.fail(message, pytrace=False)


def _cell(state: PerfState, result: RunResult) -> Cell:
    return Cell(state.profile.name, machine_name(state.hardware), result.tier, result.context_tokens)


def _linked_model(state: PerfState) -> str:
    """Return what vLLM gets for the model: its name, or the name of a link in its working folder.

    LMCache's keys begin with the model as vLLM was given it. Its S3 adapter makes "//…" of an absolute path, and every
    store fails, silently but for its log: so no tier ever sees an absolute one.
    """
    folder = state.model_folder
    if folder is None:
        return state.profile.model
    link = state.run.scratch / folder.name
    if not link.is_symlink():
        link.symlink_to(folder)
    return folder.name


def _new_folder(wanted: Path) -> Path:
    """Make a folder of this name, or of the next free one (`context-50-2`): two tests may measure one cell."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def _model_id(state: PerfState) -> str:
    return state.model_folder.name if state.model_folder else state.profile.model


def _baseline(state: PerfState, result: RunResult) -> Baseline:
    return Baseline(
        label=result.label,
        run_id=state.run.id,
        recorded=time.strftime("%Y-%m-%d", time.gmtime()),
        comparability=dict(result.comparability),
        versions=dict(result.versions),
        estimates=result.estimates,
    )


def _refresh_command(state: PerfState, tier: str) -> str:
    argv = ["pytest", "-m", "perf", "--tier", tier, "--kv-profile", state.profile.name, "--update-baselines"]
    return shlex.join(argv)
