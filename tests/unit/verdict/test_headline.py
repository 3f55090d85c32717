"""Verdicts in words."""

from __future__ import annotations

import math

from pytest_kvcache.verdict.headline import after_look, after_pairs, gate_line, headline
from pytest_kvcache.verdict.paired import Pair, decide_pairs
from pytest_kvcache.verdict.procedure import CellVerdict, decide
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
    pairs = [Pair(boot(), boot(0.3 + d)) for d in (0.01, -0.01, 0.02, -0.02)]
    decided = decide_pairs({1: pairs, 2: pairs}, family=6)[1]
    assert headline(decided).startswith("regressed: ")
    told = after_pairs(decided, minutes_a_pair=2.5, more=0, fixed=6)
    assert told.startswith("after 4 pairs: regressed: ")
    assert told.endswith("; 10.0 engine minutes, a fixed design takes 15.0")
    assert after_pairs(decided, minutes_a_pair=2.5, more=0, fixed=4).endswith("; 10.0 engine minutes")


def test_an_open_a_b_says_what_the_next_look_costs() -> None:
    """Two pairs that do not decide name the price of two more."""
    pairs = [Pair(boot(), boot(0.05 + d)) for d in (0.04, -0.04)]
    told = after_pairs(decide_pairs({1: pairs}, family=6)[1], minutes_a_pair=2.5, more=2, fixed=6)
    assert told.startswith("after 2 pairs: needs-boot: ")
    assert told.endswith("; 2 more pairs cost 5.0 engine minutes")
