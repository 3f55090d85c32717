"""The probes of a boot in their order, which take a few seconds between its start and its measured load."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import RunError
from pytest_kvcache.probes import steps
from pytest_kvcache.probes.answers import ProbeAnswer
from pytest_kvcache.probes.judge import COMPUTED, ProbeRules, computed, differences, judge, source, used
from pytest_kvcache.probes.posting import ProbeError
from pytest_kvcache.probes.sentinels import Sentinel, sentinels
from pytest_kvcache.probes.steps import ProbedPair, SentinelAnswer, Step
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.counters import Counters


@dataclass(frozen=True)
class Probed:
    """The result of the probes of a boot.

    Args:
        faults: Reasons why no verdict may rest on the boot, a line each.
        unchecked: What could not be checked, and why, a line each.
        answers: Answers to all sentinels that were sent.
        largest: Largest difference of log-probabilities, by where the KV came from.
        took_s: Time for all probes (s).
    """

    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    answers: tuple[SentinelAnswer, ...] = ()
    largest: dict[str, float] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def line(self) -> str:
        """The result in one line for people."""
        if self.faults:
            return f"probes: {len(self.faults)} faults in {self.took_s:.1f} s"
        across = next((each for each in self.answers if each.step is Step.ACROSS), None)
        parts = ["new to all caches" if any("a salt in" in line for line in self.unchecked) else "cold start"]
        if across is not None:
            answer = across.served.answer
            parts.append(
                f"{across.sentinel.home}'s prompt on {across.server}: {answer.cached_tokens} of {answer.prompt_tokens} "
                "tokens cached"
            )
        if self.largest:
            parts.append(f"same answers from {', '.join(self.largest)} (within {max(self.largest.values()):.1g})")
        return f"probes: {'; '.join(parts)} ({self.took_s:.1f} s)"

    def facts(self) -> dict[str, Any]:
        """Return the result for `probes.json`."""
        return {
            "faults": list(self.faults),
            "unchecked": list(self.unchecked),
            "took_s": round(self.took_s, 3),
            "largest_logprob_difference": self.largest,
            "asked": [
                {
                    "step": str(each.step),
                    "server": each.server,
                    "sentinel": each.sentinel.home,
                    "prompt_tokens": each.served.answer.prompt_tokens,
                    "cached_tokens": each.served.answer.cached_tokens,
                    "answer": [token.name for token in each.served.answer.tokens],
                    "tokens": vars(each.served.tokens),
                }
                for each in self.answers
            ],
        }

    def with_more(self, other: Probed) -> Probed:
        """Return this result and `other` as one; lines of `unchecked` that both have appear once."""
        return Probed(
            faults=(*self.faults, *other.faults),
            unchecked=tuple(dict.fromkeys((*self.unchecked, *other.unchecked))),
            answers=(*self.answers, *other.answers),
            largest={k: max(self.largest.get(k, 0.0), v) for k, v in (self.largest | other.largest).items()},
            took_s=self.took_s + other.took_s,
        )


class Probes:
    """The probes of one boot.

    Args:
        pair: The pair, freshly booted.
        rules: Settings by which answers are judged.
        folders: Folders of a storage that is the run's own: no file may be in them yet.
        standing: Whether the pair was there before, is others' too, and so is never emptied.
    """

    def __init__(
        self, pair: ProbedPair, rules: ProbeRules, folders: Sequence[Path] = (), *, standing: bool = False
    ) -> None:
        self._pair, self._rules, self._folders, self._standing = pair, rules, folders, standing
        self._sentinels: tuple[Sentinel, ...] = ()
        self._known: dict[str, ProbeAnswer] = {}

    def boot(self) -> Probed:
        """Probe a fresh pair, and leave its device caches and L1 empty."""
        started = time.monotonic()
        try:
            faults = [] if self._standing else [*_not_empty(self._folders), *self._used()]
            self._sentinels = sentinels(
                self._pair.tokenizer(), self._pair.servers, chunk_tokens=self._rules.chunk_tokens
            )
        except (ProbeError, RunError) as error:
            return Probed((_told(error),), took_s=time.monotonic() - started)
        answers: list[SentinelAnswer] = []
        try:
            for found in self._steps():
                answers += found
        except ProbeError as error:
            faults.append(_told(error))
        self._known = computed(answers)
        done = self._judged(answers, started)
        return replace(done, faults=(*faults, *done.faults), unchecked=tuple(self._unchecked(answers)))

    def between(self) -> Probed:
        """Empty device caches and L1 between two loads, and check that they are empty."""
        started = time.monotonic()
        if not self._sentinels or self._standing:
            return Probed()
        try:
            return self._judged(steps.emptied(self._pair, self._sentinels), started)
        except ProbeError as error:
            return Probed((_told(error),), took_s=time.monotonic() - started)

    def _steps(self) -> Iterable[list[SentinelAnswer]]:
        pair, rules, made = self._pair, self._rules, self._sentinels
        first = steps.cold(pair, made)
        yield first
        if judge(first, {}, rules):
            return  # a storage that was not empty stores nothing that it already has, so that later steps prove nothing
        yield steps.again(pair, made)
        if not self._standing:
            yield steps.reloaded(pair, made)
        if len(pair.servers) > 1:
            longest = max(each.served.answer.prompt_tokens for each in first)
            yield steps.across(
                pair, made, stored_chunks=longest // rules.chunk_tokens if rules.claim is Claim.L2 else 0
            )
        if not self._standing:
            yield steps.emptied(pair, made)

    def _judged(self, answers: Sequence[SentinelAnswer], started_s: float) -> Probed:
        largest: dict[str, float] = {}
        for each, difference in differences(answers, self._known, self._rules):
            where = source(each) if source(each) != COMPUTED else "computed again"
            largest[where] = max(largest.get(where, 0.0), difference.largest)
        faults = tuple(judge(answers, self._known, self._rules))
        return Probed(faults, (), tuple(answers), largest, time.monotonic() - started_s)

    def _used(self) -> list[str]:
        found: dict[str, Counters] = {}
        for server in self._pair.servers:
            found.update(self._pair.counters(server))
        return used(found)

    def _unchecked(self, answers: Sequence[SentinelAnswer]) -> Iterable[str]:
        rules = self._rules
        if self._standing:
            yield "a cold start: the deployment stood before; a salt in every prompt stands in its place"
            yield "what L1 gives back, and that caches are empty between contexts: nothing of a deployment is emptied"
        if len(self._pair.servers) < 2:
            yield "whether servers share what they store: there is one server"
        longest = max((each.served.answer.prompt_tokens for each in answers), default=0)
        if rules.claim is not Claim.DEVICE and answers and longest <= rules.chunk_tokens:
            yield f"L1 and L2: no prompt that the model takes is as long as a chunk ({rules.chunk_tokens} tokens)"
        if rules.claim is Claim.L2 and any(each.served.tokens.unsplit for each in answers):
            yield "that L1 is empty between contexts: this LMCache does not tell L1 from the shared storage"


def _not_empty(folders: Sequence[Path]) -> list[str]:
    found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    if not found:
        return []
    return [f"warm start: {len(found)} files are in the storage before the first request, the first {found[0]}"]


def _told(error: ProbeError | RunError) -> str:
    where = f"{error.where}: " if error.where else ""
    return f"probes: {where}{error.what}" + (f"; {error.todo}" if error.todo else "")
