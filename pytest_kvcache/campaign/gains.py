"""A tier against another one in the same session: boots in the order A B B A, decided on declared gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_kvcache.baselines import store
from pytest_kvcache.campaign import boots as booting
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.boots import BootResult
from pytest_kvcache.campaign.comparability import machine_name
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict import paired
from pytest_kvcache.verdict.cells import Cell, StoredCell
from pytest_kvcache.verdict.gains import Gain, GainVerdict, KnownSpread, decide_gain, known_spread
from pytest_kvcache.verdict.paired import BootPair
from pytest_kvcache.verdict.spread import mean


@dataclass(frozen=True)
class GainResult:
    """What a gain gate came to at one context.

    Args:
        gain: Which gate, with the ratio that it had to reach there.
        context_tokens: Length of the user context.
        verdict: The decision.
        folder: Where rows, facts and logs of the tier's last boot are.
        engine_minutes: For which pairs of both tiers ran, including their time for other contexts.
    """

    gain: Gain
    context_tokens: int
    verdict: GainVerdict
    folder: Path
    engine_minutes: float

    @property
    def figures(self) -> dict[str, float]:
        """What the gate rests on, for programs: boots of both tiers, their minutes, the ratio and its interval."""
        told = self.verdict
        ratios = {"ratio": told.ratio, "ratio_low": told.interval[0], "ratio_high": told.interval[1]}
        known = {name: float(f"{value:.4g}") for name, value in ratios.items() if not math.isnan(value)}
        return {"boots": 2 * told.pairs, "engine_minutes": round(self.engine_minutes, 2), **known}

    @property
    def line(self) -> str:
        """The gate in one line, for people."""
        told, (low, high) = self.verdict, self.verdict.interval
        if told.status == "invalid":
            return f"{self.gain.label}: {told.reasons[0]}"
        return (
            f"{self.gain.label}: {told.ratio:.3g} times [{low:.3g}, {high:.3g}] after {told.pairs} pairs, "
            f"{self.gain.relation} {self.gain.bound:.3g} is asked"
        )


class GainCampaign:
    """All boots of two tiers that are held against each other.

    Args:
        state: The session's.
        over: The tier that another one is held against.
        tier: That other one.
        gains: Gates of these two tiers.
        contexts: Lengths that tests of this session ask for.
    """

    def __init__(self, state: PerfState, over: Arm, tier: Arm, gains: Sequence[Gain], contexts: Sequence[int]) -> None:
        self._state, self._contexts = state, list(contexts)
        self._arms = {"a": replace(over, name="gain"), "b": replace(tier, name="gain")}
        self._boots: dict[str, list[BootResult]] = {"a": [], "b": []}
        self._policy = tier.profile.policy
        self._gains = {context: [self._with_bound(gain, context) for gain in gains] for context in contexts}
        self._known = {gain.short: self._known_spread(gain) for gain in gains}

    def run(self) -> dict[int, list[GainResult]]:
        """Boot both tiers in turn until every gain is decided; return the results by context.

        Raises:
            BaselineError: A gain asks for what the baselines have, and one of the two has none.
            BootError: A pair did not start, or a component died.
            RunError: The load could not be sent.
        """
        verdicts: dict[tuple[int, str], GainVerdict] = {}
        looks = paired.looks_within(self._policy.looks, self._state.settings.options.boots)
        for look, pairs in enumerate(looks):
            for arm in paired.order(pairs)[len(self._boots["a"]) + len(self._boots["b"]) :]:
                self._boots[arm].append(booting.measure(self._arms[arm], self._state, self._contexts))
            verdicts = self._decide(more=look + 1 < len(looks))
            if all(verdict.status != "needs-boot" for verdict in verdicts.values()):
                break
        return {context: self._results(context, verdicts) for context in self._contexts}

    def _decide(self, *, more: bool) -> dict[tuple[int, str], GainVerdict]:
        found: dict[tuple[int, str], GainVerdict] = {}
        family = sum(map(len, self._gains.values()))
        pairs = {context: self._pairs(context) for context in self._contexts}
        for at in range(len(self._gains[self._contexts[0]])):
            gains = {context: self._gains[context][at] for context in self._contexts}
            for context, gain in gains.items():
                # All contexts lend their pairs to the spread; each has its own threshold.
                verdict = decide_gain(
                    gain, pairs, family=family, policy=self._policy, another_block=more, known=self._known[gain.short]
                )[context]
                found[context, gain.short] = verdict
        return found

    def _pairs(self, context: int) -> list[BootPair]:
        a, b = ([each.judged(context) for each in self._boots[arm]] for arm in ("a", "b"))
        return [BootPair(x, y) for x, y in zip(a, b, strict=True)]

    def _results(self, context: int, verdicts: Mapping[tuple[int, str], GainVerdict]) -> list[GainResult]:
        folder = self._boots["b"][-1].runs[context].folder
        minutes = math.fsum(each.minutes for boots in self._boots.values() for each in boots)
        results = []
        for gain in self._gains[context]:
            result = GainResult(gain, context, verdicts[context, gain.short], folder, minutes)
            self._state.say(f"context {context}: {result.verdict.status}: {result.line}")
            results.append(result)
        return results

    def _with_bound(self, gain: Gain, context: int) -> Gain:
        """Return the gain with the ratio that it must reach; by default the baselines' own, less the margin."""
        if not math.isnan(gain.bound):
            return gain
        tier, over = (_stored(self._state, name, context) for name in (gain.tier, gain.over))
        effect = _level(tier, gain) - _level(over, gain)
        return replace(gain, bound=gain.ratio(effect + math.log1p(self._policy.margin_of(gain.metric.key))))

    def _known_spread(self, gain: Gain) -> KnownSpread:
        """Return the spread of a boot of one tier over one of the other, as their baselines have it."""
        over, tier = (
            [cell for context in self._contexts if (cell := _read(self._state, arm.tier.name, context)) is not None]
            for arm in (self._arms["a"], self._arms["b"])
        )
        return known_spread(tier, over, gain.metric, least_boots=self._policy.least_boots)


def check_baselines(state: PerfState, wanted: Mapping[Gain, Sequence[int]]) -> None:
    """Return where every gain that must be as large as the baselines' own has the baselines of both tiers.

    Args:
        state: The session's.
        wanted: Gains, with the contexts at which tests ask for them.

    Raises:
        BaselineError: One is missing.
    """
    for gain, contexts in wanted.items():
        for context in contexts if math.isnan(gain.bound) else ():
            for tier in (gain.tier, gain.over):
                _stored(state, tier, context)


def _read(state: PerfState, tier: str, context: int) -> StoredCell | None:
    cell = Cell(
        state.profile.name, machine_name(state.hardware_of(state.settings.catalogue.tiers[tier])), tier, context
    )
    return store.read(state.settings.options.baselines, cell)


def _stored(state: PerfState, tier: str, context: int) -> StoredCell:
    stored = _read(state, tier, context)
    if stored is None:
        raise BaselineError(
            "has no baseline on this machine, and its gain is to be what the baselines have",
            where=f"{state.profile.name}/{tier}/{context}",
            todo="record it (`--update-baselines`), or declare the ratio that the gain must reach",
        )
    return stored


def _level(stored: StoredCell, gain: Gain) -> float:
    return mean([gain.metric.of(boot.figures) for boot in stored.boots])
