"""A tier against its baselines: boot, look, boot again only where a verdict needs it; or record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pytest_kvcache.baselines import store, update
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.campaign import boots as booting
from pytest_kvcache.campaign import explanation, gate_verdicts
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.boots import BootResult
from pytest_kvcache.campaign.comparability import machine_name, workload_hash
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.config.options import UpdateMode
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.load.stopping import StopRule
from pytest_kvcache.telemetry.revision import uncommitted
from pytest_kvcache.verdict import headline, in_the_making, procedure, rounds
from pytest_kvcache.verdict.cells import Cell, StoredCell
from pytest_kvcache.verdict.gates import GateVerdict, TokenGate
from pytest_kvcache.verdict.procedure import Boot, CellVerdict, Evidence


@dataclass
class _Open:
    """A cell that is being measured."""

    cell: Cell
    stored: StoredCell | None
    records: bool
    allowed: int
    runs: list[RunResult] = field(default_factory=list)
    boots: list[Boot] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    verdict: CellVerdict | None = None
    done: bool = False


def to_record(update: UpdateMode, baseline_boots: int, had: int) -> int:
    """Return how many boots of a cell a session is to record: none where it is only compared.

    Args:
        update: What the session stores.
        baseline_boots: Of a whole baseline.
        had: Boots that the cell's baseline has.
    """
    if update == "none":
        return 0
    return baseline_boots if update == "all" else max(0, baseline_boots - had)


class BaselineCampaign:
    """All boots of one tier in a session.

    Args:
        state: The session's.
        arm: What is measured.
        contexts: Lengths that tests of this session ask for, in the order in which a boot runs them.
    """

    def __init__(self, state: PerfState, arm: Arm, contexts: Sequence[int]) -> None:
        self._state, self._arm = state, arm
        options, rules = state.settings.options, arm.profile.rules
        self._root, self._policy = options.baselines, arm.profile.policy
        self._family = state.settings.family
        lengths = arm.profile.workload.context_tokens
        stored = {
            # What is only compared with may be damaged: its own test says so.
            length: self._read(self._cell(length), lenient=options.update == "all" or length not in contexts)
            for length in dict.fromkeys([*lengths, *contexts])
        }
        self._siblings = [cell for length in lengths if (cell := stored[length]) is not None]
        self._cells: dict[int, _Open] = {}
        for length in contexts:
            old = stored[length]
            lacks = to_record(options.update, rules.baseline_boots, len(old.boots) if old else 0)
            allowed = lacks or rules.looks
            self._cells[length] = _Open(self._cell(length), old, lacks > 0, min(allowed, options.boots or allowed))

    def run(self) -> dict[int, CellResult]:
        """Boot until every cell is decided or recorded; return them by context length.

        Raises:
            BootError: A pair did not start, or a component died.
            RunError: The load could not be sent.
        """
        while wanted := [length for length, cell in self._cells.items() if not cell.done]:
            stop = {length: rule for length in wanted if (rule := self._stop_rule(self._cells[length])) is not None}
            boot = booting.measure(self._arm, self._state, wanted, stop=stop)
            for length in boot.runs:
                self._look(self._cells[length], boot, length)
        return self._beside_older_boots({length: self._result(cell) for length, cell in self._cells.items()})

    def _look(self, cell: _Open, boot: BootResult, length: int) -> None:
        run = boot.runs[length]
        cell.runs.append(run)
        cell.boots.append(boot.judged(length))
        cell.minutes.append(boot.minutes)
        more = len(cell.boots) < cell.allowed
        if cell.records:
            cell.verdict = self._record_verdict(cell, run)
            cell.done = cell.verdict is not None or not more or bool(self._disturbances(cell))
        else:
            boots, stored = self._same_rounds(cell)
            cell.verdict = procedure.decide(
                Evidence(boots, run.comparability, self._hash(cell)),
                stored,
                family=self._family,
                siblings=self._siblings,
                policy=self._policy,
                another_boot=more,
            )
            cell.done = cell.verdict.final
        if cell.verdict is not None:
            each = sum(cell.minutes) / len(cell.minutes)
            self._state.note_decided(cell.verdict, cell.verdict.fixed_boots * each)
            self._state.say(
                f"{run.label}, context {run.context_tokens}: {headline.after_look(cell.verdict, minutes_a_boot=each)}"
            )

    def _stop_rule(self, cell: _Open) -> StopRule | None:
        """Return when a boot may end early: never where the baseline cannot be cut to the same rounds."""
        stored = cell.stored
        rules = self._arm.profile.rules
        # An exact gate compares whole runs, and decides on the first.
        exact = any(isinstance(gate, TokenGate) for gate in self._arm.profile.declared_gates) and not cell.runs
        if (
            cell.records
            or exact
            or not rules.early_stop
            or not rounds.can_stop_early(self._policy.metrics)
            or (stored is not None and stored.unmeasured(self._policy.metrics))
            or stored is None
            or stored.round_s is None
            or stored.requests is None
        ):
            return None
        try:
            spreads = rounds.spreads(
                procedure.tier_of(stored, self._siblings), self._policy.metrics, adjust_for=self._policy.adjust_for
            )
        except ValueError:  # a baseline of one boot: its spread is not known
            return None
        return StopRule(round_s=stored.round_s, spreads=spreads)

    def _same_rounds(self, cell: _Open) -> tuple[list[Boot], StoredCell | None]:
        """Return the boots and the baseline, all cut to the rounds that the shortest boot had."""
        counts = [run.rounds for run in cell.runs if run.rounds is not None]
        if not counts or cell.stored is None or cell.stored.round_s is None:
            return cell.boots, cell.stored
        count, round_s = min(counts), cell.stored.round_s
        boots = [
            replace(boot, figures=rounds.judged_figures(rounds.prefix(run.rows, rounds=count, round_s=round_s)))
            for boot, run in zip(cell.boots, cell.runs, strict=True)
        ]
        return boots, rounds.cut(
            cell.stored, store.read_requests(self._root, cell.stored), self._policy.metrics, rounds=count
        )

    def _record_verdict(self, cell: _Open, run: RunResult) -> CellVerdict | None:
        """Return why a boot cannot be recorded, None where it can."""
        count = len(cell.boots)
        if run.faults:
            return CellVerdict("invalid", reasons=tuple(run.faults), boots=count, fixed_boots=count)
        if run.foreign:
            return CellVerdict("incomparable", reasons=run.foreign, boots=count, fixed_boots=count)
        if cell.stored is not None and self._state.settings.options.update == "missing":
            evidence = Evidence(cell.boots, run.comparability, self._hash(cell))
            different = procedure.incomparable(evidence, cell.stored, self._policy)
            if different:
                return CellVerdict("incomparable", reasons=different, boots=count, fixed_boots=count)
        return None

    def _result(self, cell: _Open) -> CellResult:
        write: Write | None = None
        refused: tuple[str, ...] = ()
        gates = gate_verdicts.against_baseline(self._arm.profile, cell.runs, cell.stored, workload=self._hash(cell))
        if cell.records and cell.verdict is None:
            refused = tuple(self._refusals(cell, gates))
            try:
                write = None if refused else self._write(cell)
            except BaselineError as error:
                refused = (error.what,)
        return CellResult(
            cell=cell.cell,
            runs=tuple(cell.runs),
            boots=tuple(cell.boots),
            minutes=tuple(cell.minutes),
            stored=cell.stored,
            verdict=cell.verdict,
            write=write,
            refused=refused,
            explanation=explanation.against_baseline(cell.verdict, cell.stored, cell.runs, self._root),
            gate_verdicts=gates,
        )

    def _beside_older_boots(self, results: dict[int, CellResult]) -> dict[int, CellResult]:
        """Return the results, with what was added to a baseline in the making beside the boots that it had."""
        if self._state.settings.options.update != "missing":
            return results
        after = [result.write.new for result in results.values() if result.write is not None] + self._siblings
        for length, result in results.items():
            if result.write is None or result.stored is None:
                continue
            making = in_the_making.compare(
                result.stored,
                result.write.new,
                siblings=procedure.tier_of(result.write.new, after)[1:],
                family=self._family,
                policy=self._policy,
                baseline_boots=self._arm.profile.rules.baseline_boots,
            )
            results[length] = replace(result, making=making)
            self._state.say(f"{result.label}, context {length}: {making.line()}")
        return results

    def _refusals(self, cell: _Open, gates: Sequence[GateVerdict]) -> list[str]:
        """Return why these boots must not become the baseline; filling up a new one is not held to all of it.

        A boot whose tokens came from elsewhere than those of the boots that are there has no common centre with them.
        """
        options = self._state.settings.options
        if disturbed := self._disturbances(cell):
            return disturbed
        if options.update == "missing":
            moved = [g.line for g in gates if isinstance(g.gate, TokenGate) and g.status in {"regressed", "improved"}]
            return [*update.refusals(cell.boots, self._policy.metrics, least_boots=1), *moved]
        least = self._arm.profile.rules.baseline_boots
        return update.refusals(cell.boots, self._policy.metrics, dirty=uncommitted(options.rootdir), least_boots=least)

    def _disturbances(self, cell: _Open) -> list[str]:
        """Return which boots had other work beside them and must not become the baseline for that."""
        if self._state.settings.options.allow_suspect:
            return []
        each = [(number, line) for number, run in enumerate(cell.runs, start=1) for line in run.disturbances]
        return [f"boot {number}: {line}, or store it all the same with --kv-allow-suspect" for number, line in each]

    def _write(self, cell: _Open) -> Write:
        state, run = self._state, cell.runs[0]
        write = update.record(
            cell.cell,
            list(zip(cell.boots, (r.rows for r in cell.runs), strict=True)),
            label=run.label,
            run_id=state.run.id,
            recorded=time.strftime("%Y-%m-%d", time.gmtime()),
            comparability=run.comparability,
            versions=run.versions,
            workload=self._hash(cell),
            round_s=self._arm.profile.workload.round_s(),
            old=cell.stored,
        )
        if state.settings.options.update == "missing" and cell.stored is not None:
            return update.extend(write, cell.stored, store.read_requests(self._root, cell.stored))
        return write

    def _cell(self, length: int) -> Cell:
        return Cell(
            self._arm.profile.name, machine_name(self._state.hardware_of(self._arm.tier)), self._arm.tier.name, length
        )

    def _read(self, cell: Cell, *, lenient: bool) -> StoredCell | None:
        if lenient:  # a damaged file is what an update repairs
            with contextlib.suppress(BaselineError):
                return store.read(self._root, cell)
            return None
        return store.read_whole(self._root, cell)

    def _hash(self, cell: _Open) -> str:
        return workload_hash(self._arm.profile.workload.sent(cell.cell.context_tokens))
