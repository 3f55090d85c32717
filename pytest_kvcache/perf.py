"""What the fixtures do: run a tier's campaign, send loads, hold a result against its verdict."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pytest_kvcache import values
from pytest_kvcache.api import hooks
from pytest_kvcache.api.result import MeasuredBoot, Result, measured_boot, result_of
from pytest_kvcache.api.verdict import verdict_of
from pytest_kvcache.baselines import files
from pytest_kvcache.campaign import measuring, own_load
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.report import benchmark as rows_of_benchmark
from pytest_kvcache.report import terminal
from pytest_kvcache.report.rows import junit_properties, making_lines, properties, status
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.showable import inert
from pytest_kvcache.tier_check import told_plainly, usable
from pytest_kvcache.verdict.gains import Gain
from pytest_kvcache.verdict.gates import AnyGate, GateVerdict
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK
from pytest_kvcache.verdict.procedure import judged
from pytest_kvcache.workload.base import Workload


@contextlib.contextmanager
def shared_pair(tier: Tier, state: PerfState) -> Iterator[ServingPair]:
    """Boot a pair for tests that talk to it themselves, and stop it."""
    with contextlib.ExitStack() as stack:
        with told_plainly():
            pair = stack.enter_context(measuring.shared_pair(state, tier))
        yield pair


@dataclass(frozen=True)
class MeasureTier:
    """What `multi_round_qa` is: measures the test's tier, on as many boots as its verdicts need.

    Args:
        state: The session's.
        tier: What to measure.
        selected: Contexts that the session's tests of this tier ask for: one boot serves them all.
    """

    state: PerfState
    tier: Tier
    selected: Sequence[int]

    def __call__(self, *, context_tokens: int) -> Result:
        """Return what was measured with user contexts of `context_tokens`; the first call does all the work.

        A measurement that fails, fails the test: it is no exception that a test could catch and go on.
        """
        with told_plainly():
            values.context(context_tokens, self.state.profile)
            return result_of(measuring.measure(self.state, self.tier, context_tokens, selected=self.selected))


@dataclass(frozen=True)
class Measure:
    """What `kv_measure` is: measures any tier, so that one test can hold tiers against each other.

    Args:
        state: The session's.
        selected: Returns the contexts that the session's tests ask for of a tier: one boot serves them all.
    """

    state: PerfState
    selected: Callable[[Tier], Sequence[int]]

    def __call__(self, *, tier: Tier | str, context_tokens: int) -> Result:
        """Return what was measured of a tier, as `multi_round_qa` does for the test's own.

        A tier that cannot run here skips the test, or fails it where --tier names the tier.

        Args:
            tier: A tier of `kvcache.toml` by its name, or one of your own.
            context_tokens: Length of the user context.
        """
        chosen = usable(tier, self.state)
        return MeasureTier(self.state, chosen, self.selected(chosen))(context_tokens=context_tokens)


@dataclass(frozen=True)
class LoadPair:
    """What `kv_load` is: sends workloads to `vllm_pair`.

    Args:
        state: The session's.
        tier: What the pair serves.
        pair: The running one.
    """

    state: PerfState
    tier: Tier
    pair: ServingPair

    def __call__(self, workload: Workload, *, context_tokens: int | None = None) -> MeasuredBoot:
        """Send a workload to the pair and return what came of it, with the proof of where its KV came from.

        The pair is as earlier tests left it: nothing is emptied before, and no baseline is compared with.

        Args:
            workload: Any, also of a class that is registered nowhere.
            context_tokens: One of its lengths; the first of them for None.
        """
        with told_plainly():
            length = workload.context_tokens[0] if context_tokens is None else context_tokens
            return measured_boot(own_load.load(self.state, self.tier, self.pair, workload, length))


@dataclass(frozen=True)
class BaselineCheck:
    """What `kv_baseline` is: holds results against their verdicts.

    Args:
        state: The session's.
        item: The test.
        benchmark: pytest-benchmark's fixture, or what stands in its place.
        gain_contexts: Returns the contexts at which the session's tests ask for gains of a tier.
    """

    state: PerfState
    item: pytest.Item
    benchmark: Any
    gain_contexts: Callable[[Gain], Sequence[int]]

    def check(self, result: Result, gate: AnyGate | str | None = None) -> None:
        """Pass or fail the test by the verdict on `gate`, or on the whole cell where none is named.

        A gate is what `kv_gate` brings, or its short name: `ttft`, `speed`, `decode`, and those that the profile
        declares, such as `tokens` and `limit-ttft_p99_s`.
        `pass` and `improved` succeed, and so does what was recorded. `inconclusive` and `incomparable` are shown as
        such and fail under --kv-strict. Everything else fails.
        """
        with told_plainly():
            if gate is not None:
                _skip_unless_there(values.gate(gate, self.state.profile), values.result(result).cell)
            cell = values.result(result).cell
            judged = None if gate is None else values.gate(gate, self.state.profile, cell.cell.tier)
            self._check(self._with_gain(cell, judged) if isinstance(judged, Gain) else cell, judged)

    def _with_gain(self, result: CellResult, gain: Gain) -> CellResult:
        """Return a result together with what its tier brings over the other one, measured where it is not yet."""
        if self.state.settings.options.against is not None:
            pytest.skip("gains are of two tiers of one engine, and not measured under --kv-against")
        most, least = self.state.settings.options.boots, 2 * PAIRS_AT_LOOK[0]
        if most is not None and most < least:
            line = f"{gain.label}: --kv-boots {most} leaves no pairs to compare: allow {least} or more, of both tiers"
            return replace(result, gate_verdicts=(*result.gate_verdicts, GateVerdict(gain, "inconclusive", line)))
        usable(gain.over, self.state, named=False)
        found = measuring.gain(self.state, gain, result.context_tokens, selected=self.gain_contexts(gain))
        reasons = (f"boots of the gain: {found.folder}",)
        told = GateVerdict(gain, found.verdict.status, found.line, reasons, found.figures)
        return replace(result, gate_verdicts=(*result.gate_verdicts, told))

    def _check(self, result: CellResult, gate: AnyGate | None) -> None:
        state = self.state
        outcome = properties(result, gate)
        # Not record_property: it warns under the default JUnit family, which takes properties all the same.
        self.item.user_properties += junit_properties(result, gate, outcome)
        metric = state.profile.judged[0] if gate is None else gate
        if isinstance(metric, Metric):  # pytest-benchmark knows times, and no others are gated by times
            rows_of_benchmark.publish(
                self.benchmark, self.item, result, metric, rows_of_benchmark.facts(result, metric, outcome)
            )
        self.item.config.stash[hooks.KEY].judged(self.item, result, gate)
        if lines := making_lines(result, gate):  # a test that passes has no message: -rA shows this
            self.item.add_report_section("call", "kvcache", "\n".join(lines))
        found = verdict_of(result, gate)
        if found.succeeds:
            return
        message = self._message(result, gate)
        first = state.told.setdefault(message, self.item.nodeid)
        if found.undecided and not state.settings.options.strict:
            state.undecided.append((self.item.nodeid, found.status, message.splitlines()[0]))
            return
        if first != self.item.nodeid:  # what all gates of a cell have in common is said once
            head = "; ".join(line.strip() for line in message.splitlines()[:2])
            message = f"{head} (in full: {first})"
        pytest.fail(inert(message), pytrace=False)

    def _message(self, result: CellResult, gate: AnyGate | None) -> str:
        others: list[str] = []
        if status(result, gate) == "no-baseline":
            with contextlib.suppress(KvCacheError):
                others = files.elsewhere(files.scan(self.state.settings.options.baselines), result.cell)
        refresh = _refresh_command(self.state, result)
        return terminal.failure(result, gate, refresh=refresh, others=others)


def _skip_unless_there(gate: AnyGate, result: CellResult) -> None:
    """Skip the test of a metric that tiers may have none of, where neither sound boots nor the baseline have it."""
    if result.verdict is not None and result.verdict.status == "invalid":
        return  # a tier that is broken has no hits either
    if isinstance(gate, Metric) and not judged([gate], result.boots, result.stored):
        pytest.skip(f"{result.label} has no {gate.label}")


def _refresh_command(state: PerfState, result: CellResult) -> str:
    argv = [
        "pytest",
        "-m",
        "perf",
        state.settings.options.tier_option,
        result.cell.tier,
        "--kv-profile",
        state.profile.name,
    ]
    return shlex.join([*argv, state.settings.options.update_option])
