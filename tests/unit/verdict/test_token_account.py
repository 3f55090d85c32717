"""Exact gates: token accounts of new boots against those of a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_kvcache.verdict.gates import TokenGate, told_tokens
from pytest_kvcache.verdict.token_account import ORACLE_ERROR, SOURCES, TRANSFERS, TokenAccount, compare

#: A boot of the in-process mode at context 3500, as measured six times with the same figures.
TOKENS = {"computed": 14356, "device": 2560, "l1": 46726, "l2": 14586}
TRANSFERRED = {"l1_stored": 12544, "l2_stored": 49, "l2_loaded": 59, "stored_bytes": 51380224, "loaded_bytes": 61865984}
ORDER, ANOTHER = "0" * 16, "f" * 16


def account(order: str = ORDER, expected: Mapping[str, int] | None = None, **changed: int) -> TokenAccount:
    """Return the account of a boot, some of whose figures are others."""
    tokens = TOKENS | {name: value for name, value in changed.items() if name in SOURCES}
    moved = TRANSFERRED | {name: value for name, value in changed.items() if name in TRANSFERS}
    return TokenAccount(order=order, tokens=tokens, transfers=moved, expected=dict(expected or {}))


def test_the_same_figures_pass_on_one_boot() -> None:
    """One boot with the tokens and transfers of a baseline of one boot passes."""
    assert compare([account()], [account()]).status == "pass"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        # LMCache of another version loads less from L1, as many tokens being computed.
        ({"l1": 29545, "l2": 31767}, "from L1 46,726 -> 29,545"),
        # A smaller L1: tokens come from L2 in place of L1.
        ({"l1": 46470, "l2": 14842, "loaded_bytes": 62914560, "l2_loaded": 60}, "from L2 14,586 -> 14,842 (+256)"),
        # A connector that stores half: what another server needs is computed again.
        ({"computed": 16404, "l2": 12538, "stored_bytes": 25690112, "l2_stored": 24}, "computed 14,356 -> 16,404"),
        # The same, where this load never asks for what was not stored.
        ({"stored_bytes": 25690112, "l2_stored": 24}, "bytes written to L2 51,380,224 -> 25,690,112"),
        # Loads that fail.
        ({"lost": 512, "l2": 14074}, "lost 0 -> 512 (+512)"),
        # One token.
        ({"computed": 14357, "l1": 46725}, "computed 14,356 -> 14,357 (+1)"),
        # More is written than before, which costs the storage's bandwidth.
        ({"stored_bytes": 102760448, "l2_stored": 98}, "bytes written to L2 51,380,224 -> 102,760,448"),
    ],
)
def test_one_boot_shows_a_change(changed: dict[str, int], named: str) -> None:
    """Whatever of tokens or transfers differs is named with old, new and difference, and fails the gate."""
    found = compare([account(ORDER, None, **changed)], [account(), account()])
    assert found.status == "regressed"
    assert any(named in str(each) for each in found.differences)
    told = told_tokens(TokenGate(), found)
    assert told.status == "regressed"
    assert str(found.differences[0]) in told.line


@pytest.mark.parametrize(
    "changed",
    [
        {"computed": 13332, "l2": 15610, "l1_stored": 11520},
        {"l2": 14330, "l1": 46982, "loaded_bytes": 60817408, "l2_loaded": 58},
        {"device": 2816, "l1": 46470},
    ],
)
def test_tokens_from_faster_places_are_an_improvement(changed: dict[str, int]) -> None:
    """Where tokens only moved to faster places the baseline is stale, and nothing is worse."""
    assert compare([account(ORDER, None, **changed)], [account()]).status == "improved"


def told_together(of: TokenAccount, **changed: int) -> TokenAccount:
    """Return an account as an LMCache counts that does not tell L1 from L2."""
    tokens = {name: n for name, n in of.tokens.items() if name not in {"l1", "l2"}}
    tokens["unsplit"] = of.tokens["l1"] + of.tokens["l2"]
    return of.model_copy(update={"tokens": tokens | changed})


@pytest.mark.parametrize("newer", ["new", "old"])
@pytest.mark.parametrize("order", [ORDER, ANOTHER])
def test_levels_that_one_side_does_not_tell_are_no_difference(newer: str, order: str) -> None:
    """Where one LMCache tells L1 from L2 and the other does not, their sums are compared, in any order of requests."""
    split = account(ORDER, TOKENS)
    whole = told_together(account(order, TOKENS))
    found = compare([split], [whole]) if newer == "new" else compare([whole], [split])
    assert found.status == "pass"
    assert "tokens from both are added up" in found.reasons[0]
    assert found.prompt_tokens == sum(TOKENS.values())
    more = told_together(account(ORDER, TOKENS), computed=14357, unsplit=61311)
    assert [str(each) for each in compare([more], [split]).differences] == [
        "computed 14,356 -> 14,357 (+1)",
        "from LMCache (L1 or L2) 61,312 -> 61,311 (-1)",
    ]


def test_levels_that_both_sides_tell_are_compared() -> None:
    """A boot without a hit in LMCache says nothing of whether its LMCache tells the levels."""
    cold = account(l1=0, l2=0, computed=sum(TOKENS.values()) - TOKENS["device"])
    found = compare([cold], [account()])
    assert found.status == "regressed"
    assert found.reasons == ()
    assert {each.name for each in found.differences} == {"computed", "l1", "l2"}


def test_what_the_baselines_boots_differ_by_is_allowed() -> None:
    """A figure between those of the baseline's boots is no change; one beyond them is."""
    old = [account(l2=14586, l1=46726), account(l2=14842, l1=46470)]
    assert compare([account(l2=14700, l1=46612)], old).status == "pass"
    assert compare([account(l2=14843, l1=46469)], old).status == "regressed"


def test_a_tolerance_is_a_share_of_all_prompt_tokens() -> None:
    """A declared tolerance lets each source differ by that share of all tokens, and each transfer by that of itself."""
    whole = sum(TOKENS.values())
    within, beyond = int(0.05 * whole), int(0.05 * whole) + 1
    for moved, status in ((within, "pass"), (beyond, "regressed")):
        new = account(computed=TOKENS["computed"] + moved, l1=TOKENS["l1"] - moved)
        assert compare([new], [account()], tolerance=0.05).status == status
    assert compare([account(stored_bytes=49000000)], [account()], tolerance=0.05).status == "pass"
    assert compare([account(stored_bytes=48000000)], [account()], tolerance=0.05).status == "regressed"


@given(late=st.integers(0, 6000))
def test_requests_in_another_order_are_held_against_what_that_order_gives(late: int) -> None:
    """A user who was late moves tokens as the oracle expects of that order: no alarm, and a real loss is one."""
    old = account(expected=TOKENS)
    moved = TOKENS | {"computed": TOKENS["computed"] + late, "l1": TOKENS["l1"] - late}
    assert compare([account(ANOTHER, moved, **moved)], [old]).status == "pass"
    lost = int(ORACLE_ERROR * sum(TOKENS.values())) + 1
    worse = moved | {"computed": moved["computed"] + lost, "l1": moved["l1"] - lost}
    found = compare([account(ANOTHER, moved, **worse)], [old])
    assert found.status == "regressed"
    assert "another order" in found.reasons[0]


def test_boots_of_the_same_order_are_preferred() -> None:
    """A boot is held against the baseline's boots of its own order, where there is one."""
    old = [account(computed=20000, l1=41082), account(ANOTHER)]
    assert compare([account(ANOTHER)], old).status == "pass"
    assert compare([account(ANOTHER, computed=20000, l1=41082)], old).status == "regressed"


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        ([None], [account()], "ended early"),
        ([account(), None], [account()], "ended early"),
        ([account()], [None], "record it anew"),
        ([account(ANOTHER)], [account()], "not known"),
        ([account(ANOTHER, TOKENS)], [account()], "not known"),
    ],
)
def test_what_cannot_be_compared_is_undecided(new: list[Any], old: list[Any], reason: str) -> None:
    """Without an account, or without an order to compare in, the gate says why it says nothing."""
    found = compare(new, old)
    assert found.status == "inconclusive"
    assert reason in found.reasons[0]


@example({"unsplit": 1}, {"l2": 1})
@example({"unsplit": 1, "computed": 2}, {"l1": 1, "computed": 1})
@given(
    st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 10**6), min_size=1),
    st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 10**6), min_size=1),
)
def test_any_difference_is_seen_and_none_is_invented(old: dict[str, int], new: dict[str, int]) -> None:
    """With no tolerance an account passes exactly where every source is the same; swapping a gain gives no gain.

    Where one side tells L1 from L2 and the other does not, both are one source.
    """
    a, b = (TokenAccount(order=ORDER, tokens=tokens) for tokens in (old, new))
    added = {a.tells_levels, b.tells_levels} == {True, False}

    def sources(tokens: dict[str, int]) -> Counter[str]:
        found: Counter[str] = Counter()
        for name, count in tokens.items():
            found["l1 or l2" if added and name in {"l1", "l2", "unsplit"} else name] += count
        return +found

    same = sources(old) == sources(new)
    assert (compare([b], [a]).status == "pass") == same
    if compare([b], [a]).status == "improved" and sum(old.values()) == sum(new.values()):
        assert compare([a], [b]).status == "regressed"
