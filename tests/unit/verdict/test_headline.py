"""Verdicts in words."""

from __future__ import annotations

import math

import pytest

from pytest_kvcache.verdict.headline import UNDECIDED, after_look, after_pairs, deciding_gate, gate_line, headline
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.paired import BootPair, decide_pairs
from pytest_kvcache.verdict.procedure import CellVerdict, Gate, Status, decide
from tests.unit.verdict.make import FAMILY, boot, evidence, sibling, stored


def say(*worse: float) -> CellVerdict:
    """Decide on boots that are worse by these log ratios in TTFT."""
    boots = [boot({"ttft_geomean_s": w}) for w in worse]
    return decide(evidence(*boots), stored(), family=FAMILY, siblings=[sibling()])


def test_a_regression_in_one_line() -> None:
    """Metric, old → new, how much worse, how sure, and against what."""
    line = headline(say(math.log(1.3)))
    assert line.startswith("regressed: TTFT (s) 0.5 -> 0.65, worse by +30.0% [+")
    assert "margin 12.2%" in line


def test_a_pass_says_what_it_can_tell() -> None:
    """A pass names its margin: what it would not have seen."""
    assert headline(say(0.0)).startswith("pass: nothing is worse by its margin (")
    assert headline(say(0.0)).endswith(": 12%)")
    assert gate_line(say(0.0).gates[0]).endswith(": pass")


@pytest.mark.parametrize(
    ("status", "effects", "decides"),
    [
        # effect, upper bound, outcome of each gate; the margin is 0.1
        ("inconclusive", [(0.09, 0.095, "PASS"), (0.02, 0.3, "OPEN")], 1),
        ("inconclusive", [(0.09, 0.095, "PASS"), (0.02, 0.3, "TOO_WIDE"), (0.04, 0.2, "OPEN")], 1),
        ("needs-boot", [(-0.3, -0.2, "IMPROVED"), (0.02, 0.11, "OPEN")], 1),
        ("regressed", [(0.02, 0.9, "OPEN"), (0.3, 0.4, "REGRESSED"), (0.2, 0.8, "REGRESSED")], 1),
        ("improved", [(0.02, 0.05, "PASS"), (-0.3, -0.2, "IMPROVED"), (-0.4, -0.3, "IMPROVED")], 2),
        ("pass", [(0.01, 0.05, "PASS"), (0.03, 0.06, "PASS")], 1),
    ],
)
def test_which_gate_decides(status: Status, effects: list[tuple[float, float, str]], decides: int) -> None:
    """A regressed gate stands before an undecided one, and one that passed never speaks for a verdict that did not."""
    gates = [
        Gate(metric, Outcome[outcome], 1.0, math.exp(effect), effect, 2 * effect - upper, upper, 0.1, 0.05, 5)
        for metric, (effect, upper, outcome) in zip(DEFAULT_METRICS, effects, strict=False)
    ]
    verdict = CellVerdict(status, tuple(gates), boots=1)
    assert deciding_gate(verdict) is gates[decides]
    if status in {"inconclusive", "needs-boot"}:
        assert gates[decides].outcome in UNDECIDED
        assert headline(verdict) == f"{status}: {gate_line(gates[decides])}"


def test_what_is_known_and_what_the_next_boot_costs() -> None:
    """An undecided look shows the open metric and the price of going on; a final one what was spent and saved."""
    look = after_look(say(0.07), minutes_a_boot=2.5)
    assert look.startswith("after 1 boot: needs-boot: TTFT (s): 0.5 -> 0.5363, worse by +7.3%")
    assert look.endswith("one more boot costs 2.5 engine minutes")
    assert after_look(say(0.0), minutes_a_boot=2.5).endswith("2.5 engine minutes, a fixed design takes 7.5")
    assert after_look(say(0.07, 0.07, 0.07), minutes_a_boot=2).endswith("6.0 engine minutes")


def test_verdicts_without_a_comparison() -> None:
    """Improved says that the baseline is stale; the others say their first reason, or their name."""
    assert headline(say(-0.4)).endswith("the baseline is stale")
    assert headline(decide(evidence(boot()), None, family=FAMILY)) == "no-baseline"
    small = decide(evidence(boot()), stored([0.0, 0.01]), family=FAMILY)
    assert headline(small) == "inconclusive: the baseline has 2 boots, gates need 6"


def test_pairs_have_the_same_words() -> None:
    """An A/B is told like a comparison with a baseline."""
    pairs = [BootPair(boot(), boot(0.3 + d)) for d in (0.01, -0.01, 0.02, -0.02)]
    decided = decide_pairs({1: pairs, 2: pairs}, family=6)[1]
    assert headline(decided).startswith("regressed: ")
    told = after_pairs(decided, minutes_a_pair=2.5, more=0, fixed=6)
    assert told.startswith("after 4 pairs: regressed: ")
    assert told.endswith("; 10.0 engine minutes, a fixed design takes 15.0")
    assert after_pairs(decided, minutes_a_pair=2.5, more=0, fixed=4).endswith("; 10.0 engine minutes")


def test_an_open_a_b_says_what_the_next_look_costs() -> None:
    """Two pairs that do not decide name the price of two more."""
    pairs = [BootPair(boot(), boot(0.05 + d)) for d in (0.04, -0.04)]
    told = after_pairs(decide_pairs({1: pairs}, family=6)[1], minutes_a_pair=2.5, more=2, fixed=6)
    assert told.startswith("after 2 pairs: needs-boot: ")
    assert told.endswith("; 2 more pairs cost 5.0 engine minutes")
