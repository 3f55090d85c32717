"""Errors, power and cost of gain gates, with the function that decides them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_kvcache.verdict.gains import NOTHING_KNOWN, Gain, KnownSpread, decide_gain
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, BootPair
from pytest_kvcache.verdict.procedure import Boot

_TTFT = DEFAULT_METRICS[0]
_BOUND = 0.6
#: Degrees of freedom of the baselines of both tiers: twelve boots of each.
_BASELINE_DF = 11
#: Deciding one session at a time is slow, and a share of 2,000 is known to one percent.
_MOST_SESSIONS = 2_000
#: True ratios of TTFT, tier over the other one: a usual gain, the bound itself, no gain at all.
_RATIOS = {"0.3 times": 0.3, "0.6 times, as asked": 0.6, "as slow": 1.0}


def gains(sessions: int, *, seed: int) -> Iterator[dict[str, str]]:
    """Yield a line for each spread of a pair, with and without baselines: TTFT at most 0.6 times the other tier's.

    Args:
        sessions: For each figure; more than 2,000 are not played.
        seed: Of the random numbers.
    """
    count = min(sessions, _MOST_SESSIONS)
    for sd in (0.05, 0.1, 0.2):
        for baselines in (False, True):
            line = {"sd of a pair's log ratio": f"{sd:.0%}", "baselines": "12 boots of each" if baselines else "none"}
            for name, ratio in _RATIOS.items():
                random = np.random.default_rng(seed)
                ended = [_play(random, ratio, sd, baselines=baselines) for _ in range(count)]
                for status in ("pass", "regressed"):
                    line[f"{name}: {status}"] = f"{sum(e[0] == status for e in ended) / count:.1%}"
                line[f"{name}: pairs"] = f"{sum(e[1] for e in ended) / count:.1f}"
            yield line


def _play(random: np.random.Generator, ratio: float, sd: float, *, baselines: bool) -> tuple[str, int]:
    """Return what one session of one gate at one context comes to, and the pairs that it took."""
    known = NOTHING_KNOWN
    if baselines:
        known = KnownSpread(sd * float(np.sqrt(random.chisquare(_BASELINE_DF) / _BASELINE_DF)), _BASELINE_DF)
    gain, policy = Gain("tier", "other", _TTFT, _BOUND), Policy()
    pairs: list[BootPair] = []
    for at_look in PAIRS_AT_LOOK:
        while len(pairs) < at_look:
            new = ratio * float(np.exp(random.normal(0, sd)))
            pairs.append(BootPair(Boot({_TTFT.key: 1.0}), Boot({_TTFT.key: new})))
        more = at_look < PAIRS_AT_LOOK[-1]
        verdict = decide_gain(gain, {1: pairs}, family=2, policy=policy, another_block=more, known=known)[1]
        if verdict.status != "needs-boot":
            return verdict.status, len(pairs)
    raise AssertionError("the last look decides")
