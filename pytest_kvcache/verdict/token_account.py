"""Exact gates: where the tokens of a boot came from and what was stored, against the same of a baseline's boots (pure).

In mode `exact` every boot sends the same prompts, and caches are deterministic: where requests reach a server in the
same order, each boot has the same tokens from the same places. So one boot decides, and nothing is estimated. Where
the order was another (a user was late, since the machine was busy), what an LRU hierarchy gives for *that* order
(`proof/expected_hits.py`) is subtracted on both sides before they are compared, and the oracle's own error is allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Where the tokens of prompts came from, the slowest place first: tokens that move towards the front cost time.
SOURCES = ("lost", "computed", "other", "unsplit", "l2", "l1", "device")
_LEVELS = ("unsplit", "l2", "l1")
#: What was moved between the levels of LMCache, and what one of each is.
TRANSFERS = {
    "l1_stored": "stored in L1",
    "l2_stored": "stored in L2 (chunks)",
    "l2_loaded": "loaded from L2 (chunks)",
    "stored_bytes": "bytes written to L2",
    "loaded_bytes": "bytes read from L2",
}
_WORDS = {
    "lost": "lost",
    "computed": "computed",
    "other": "from a connector of another kind",
    "unsplit": "from LMCache (L1 or L2)",
    "l2": "from L2",
    "l1": "from L1",
    "device": "from the device",
}
#: Share of the prompt tokens by which the oracle may be off where requests overlap: what `proof/hit_differences.py`
#: calls a large difference.
ORACLE_ERROR = 0.1

Counts = dict[Annotated[str, Field(min_length=1, max_length=40)], Annotated[int, Field(ge=0, le=10**18)]]


class TokenAccount(BaseModel):
    """What one boot's counters say, added up over its servers.

    Args:
        order: Digest of the requests in the order in which each server got them.
        tokens: Prompt tokens by source (`SOURCES`).
        transfers: By name (`TRANSFERS`).
        expected: Prompt tokens by source that an LRU hierarchy gives for this order; empty where that is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    order: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    tokens: Counts
    transfers: Counts = Field(default_factory=dict)
    expected: Counts = Field(default_factory=dict)

    @property
    def tells_levels(self) -> bool | None:
        """Whether it is known which tokens were in L1 and which in L2; None where LMCache had none."""
        if self.tokens.get("unsplit"):
            return False
        return True if self.tokens.get("l1") or self.tokens.get("l2") else None

    def without_levels(self) -> TokenAccount:
        """Return the same with the tokens of L1 and L2 added up, as an LMCache counts that does not tell them apart."""
        tokens, expected = (_added_up(counts) for counts in (self.tokens, self.expected))
        return self.model_copy(update={"tokens": tokens, "expected": expected})

    @property
    def prompt_tokens(self) -> int:
        """All prompt tokens."""
        return sum(self.tokens.values())


@dataclass(frozen=True)
class TokenDifference:
    """One figure that is not what the baseline has.

    Args:
        name: Of `SOURCES` or `TRANSFERS`.
        old: What the baseline's boots have, the nearest to `new` where they differ.
        new: What this boot has.
        boot: Number of the new boot, from 1.
    """

    name: str
    old: int
    new: int
    boot: int

    def __str__(self) -> str:
        what = _WORDS.get(self.name) or TRANSFERS[self.name]
        return f"{what} {self.old:,} -> {self.new:,} ({self.new - self.old:+,})"


@dataclass(frozen=True)
class TokenVerdict:
    """What an exact gate came to.

    Args:
        status: `regressed` where any figure differs and tokens did not just move to faster places; `improved` where
            they did; `inconclusive` where nothing can be said; else `pass`.
        differences: What differs, of all boots.
        reasons: Why, where nothing can be said; else how it was compared.
        prompt_tokens: Of the first new boot.
    """

    status: Literal["pass", "improved", "regressed", "inconclusive"]
    differences: tuple[TokenDifference, ...] = ()
    reasons: tuple[str, ...] = ()
    prompt_tokens: int = 0


def compare(
    new: Sequence[TokenAccount | None], old: Sequence[TokenAccount | None], *, tolerance: float = 0.0
) -> TokenVerdict:
    """Compare the accounts of new boots with those of a baseline's.

    A figure differs where it lies outside of what the baseline's boots have, by more than the tolerance. Where the
    LMCache of one side does not tell L1 from L2, tokens from both are added up on all sides.

    Args:
        new: Of each new boot; None where it has no account.
        old: Of each boot of the baseline; None where it was recorded without one.
        tolerance: Share of all prompt tokens for tokens, and of the baseline's figure for transfers.
    """
    known = [account for account in old if account is not None]
    if not new or any(account is None for account in new):
        return TokenVerdict(
            "inconclusive",
            reasons=("a boot was ended early, was still storing when it was read, or has no counters to compare",),
        )
    if not known:
        return TokenVerdict(
            "inconclusive", reasons=("the baseline has no token account: record it anew with --update-baselines",)
        )
    accounts = [account for account in new if account is not None]
    found: list[TokenDifference] = []
    reasons: list[str] = []
    if len({each.tells_levels for each in (*accounts, *known)} - {None}) > 1:
        accounts = [each.without_levels() for each in accounts]
        known = [each.without_levels() for each in known]
        reasons.append("LMCache tells L1 from L2 on one side only, so that tokens from both are added up")
    faster = True
    for number, account in enumerate(accounts, start=1):
        alike = [each for each in known if each.order == account.order]
        told = [each for each in known if each.expected] if account.expected else []
        if alike:
            moved = list(_differences(number, account, alike, tolerance))
        elif told:
            reasons.append(
                f"boot {number}: requests came in another order than in any boot of the baseline, so tokens are "
                "compared after subtracting what is expected of each order"
            )
            moved = list(_differences_from_expected(number, account, told, max(tolerance, ORACLE_ERROR)))
        else:
            unknown = (
                f"boot {number}: requests came in another order than in any boot of the baseline, and what is expected "
                "of this order is not known"
            )
            return TokenVerdict("inconclusive", (), (unknown,), account.prompt_tokens)
        faster = faster and _faster(account, alike or told, moved)
        found += moved
    status: Literal["pass", "improved", "regressed"] = "pass" if not found else "improved" if faster else "regressed"
    return TokenVerdict(status, tuple(found), tuple(reasons), accounts[0].prompt_tokens)


def _added_up(counts: Counts) -> Counts:
    both = sum(counts.get(name, 0) for name in _LEVELS)
    return {name: n for name, n in counts.items() if name not in _LEVELS} | ({"unsplit": both} if both else {})


def _differences(
    number: int, account: TokenAccount, old: Sequence[TokenAccount], tolerance: float
) -> Iterable[TokenDifference]:
    whole = account.prompt_tokens
    for name in SOURCES:
        have, values = account.tokens.get(name, 0), [each.tokens.get(name, 0) for each in old]
        near = _nearest(have, values)
        if abs(have - near) > tolerance * whole:
            yield TokenDifference(name, near, have, number)
    for name in TRANSFERS:
        have, values = account.transfers.get(name, 0), [each.transfers.get(name, 0) for each in old]
        near = _nearest(have, values)
        if abs(have - near) > tolerance * near:
            yield TokenDifference(name, near, have, number)


def _differences_from_expected(
    number: int, account: TokenAccount, old: Sequence[TokenAccount], tolerance: float
) -> Iterable[TokenDifference]:
    def beyond(each: TokenAccount, name: str) -> int:
        return each.tokens.get(name, 0) - each.expected.get(name, 0)

    for name in SOURCES:
        have = beyond(account, name)
        near = _nearest(have, [beyond(each, name) for each in old])
        if abs(have - near) > tolerance * account.prompt_tokens:
            new = account.tokens.get(name, 0)
            yield TokenDifference(name, new - (have - near), new, number)


def _nearest(value: int, values: Sequence[int]) -> int:
    """Return the number between the least and the greatest of `values` that is nearest to `value`."""
    return min(max(value, min(values)), max(values))


def _faster(account: TokenAccount, old: Sequence[TokenAccount], moved: Sequence[TokenDifference]) -> bool:
    """Return whether tokens only moved to faster places, and no transfer grew; also where nothing moved at all.

    Tokens that are not computed need not be stored again, and those that came from L1 need not be loaded from L2.
    """
    if not moved:
        return True
    totals = [each.prompt_tokens for each in old]
    if not min(totals) <= account.prompt_tokens <= max(totals):
        return False
    more = {each.name: each.new - each.old for each in moved}
    if not more.keys() & set(SOURCES) or any(count > 0 for name, count in more.items() if name in TRANSFERS):
        return False
    slower = itertools.accumulate(more.get(name, 0) for name in SOURCES[:-1])
    return all(count <= 0 for count in slower)
