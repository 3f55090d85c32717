"""Two sides against each other without a baseline: boots in the order A B B A, decided on paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_kvcache.campaign import boots as booting
from pytest_kvcache.campaign import explanation, gate_verdicts
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.boots import BootResult
from pytest_kvcache.campaign.comparability import machine_name
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.verdict import headline, paired
from pytest_kvcache.verdict.cells import Cell
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, BootPair, PairedVerdict


class AgainstCampaign:
    """All boots of one tier of both sides.

    Args:
        state: The session's.
        a: What is used now.
        b: What might be.
        contexts: Lengths that tests of this session ask for.
    """

    def __init__(self, state: PerfState, a: Arm, b: Arm, contexts: Sequence[int]) -> None:
        self._state = state
        self._sides = {"a": replace(a, name="A"), "b": replace(b, name="B")}
        self._contexts = list(contexts)
        self._boots: dict[str, list[BootResult]] = {"a": [], "b": []}
        self._verdicts: dict[int, PairedVerdict] = {}

    def run(self) -> dict[int, CellResult]:
        """Boot both sides in turn until B is decided at every context; return B's results.

        Raises:
            BootError: A pair did not start, or a component died.
            RunError: The load could not be sent.
        """
        for each in self._sides.values():
            self._state.say(f"{each.name} is {each}")
        every = PAIRS_AT_LOOK[: self._sides["a"].profile.policy.looks]
        looks = self._allowed(every)
        for look, pairs in enumerate(looks):
            wanted = [c for c in self._contexts if c not in self._verdicts or not _final(self._verdicts[c])]
            if not wanted:
                break
            for arm in paired.order(pairs)[len(self._boots["a"]) + len(self._boots["b"]) :]:
                self._boots[arm].append(booting.measure(self._sides[arm], self._state, wanted))
            more = looks[look + 1] - pairs if look + 1 < len(looks) else 0
            self._judge(wanted, more=more, fixed=every[-1])
        return {context: self._result(context) for context in self._contexts}

    def _allowed(self, every: Sequence[int]) -> list[int]:
        """Return the looks that --kv-boots leaves, which counts the boots of both sides, and say what it cannot use."""
        most = self._state.settings.options.boots
        looks = paired.looks_within(len(every), most)
        if most is not None and 2 * looks[-1] < most < 2 * every[-1]:
            at = ", ".join(str(2 * pairs) for pairs in every)
            self._state.say(
                f"--kv-boots {most} counts the boots of A and B together, which are looked at after {at}: there will be"
                f" {2 * looks[-1]} at most"
            )
        return looks

    def _judge(self, wanted: list[int], *, more: int, fixed: int) -> None:
        """Decide; `more` are the pairs to the next look, 0 where there is none, `fixed` those of a design without."""
        verdicts = paired.decide_pairs(
            {context: self._pairs(context) for context in wanted},
            family=self._state.settings.family,
            policy=self._sides["a"].profile.policy,
            another_block=more > 0,
        )
        every = [each.minutes for boots in self._boots.values() for each in boots]
        minutes_a_pair = 2 * sum(every) / len(every)
        for context, verdict in verdicts.items():
            self._verdicts[context] = verdict
            self._state.note_decided(verdict, fixed * minutes_a_pair)
            known = headline.after_pairs(verdict, minutes_a_pair=minutes_a_pair, more=more, fixed=fixed)
            self._state.say(f"B against A, context {context}, {known}")

    def _pairs(self, context: int) -> list[BootPair]:
        a, b = ([each.judged(context) for each in self._boots[arm] if context in each.runs] for arm in ("a", "b"))
        return [BootPair(x, y) for x, y in zip(a, b, strict=True)]

    def _result(self, context: int) -> CellResult:
        a, b = ([each for each in self._boots[arm] if context in each.runs] for arm in ("a", "b"))
        runs = tuple(each.runs[context] for each in b)
        arm, verdict = self._sides["b"], self._verdicts[context]
        return CellResult(
            cell=Cell(arm.profile.name, machine_name(self._state.hardware), arm.tier.name, context),
            runs=runs,
            boots=tuple(each.judged(context) for each in b),
            minutes=tuple(x.minutes + y.minutes for x, y in zip(a, b, strict=True)),
            verdict=verdict,
            explanation=explanation.against_arm(verdict, [each.runs[context] for each in a], runs),
            gate_verdicts=gate_verdicts.against_arm(arm.profile, [each.runs[context] for each in a], runs),
        )


def _final(verdict: PairedVerdict) -> bool:
    return verdict.status != "needs-boot"
