"""What a decision rests on and what it comes to: boots of a cell, one metric then and now, the verdict of a cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.metrics import Metric
from pytest_kvcache.verdict.token_account import TokenAccount

Status = Literal[
    "pass", "regressed", "improved", "inconclusive", "incomparable", "invalid", "no-baseline", "needs-boot"
]


@dataclass(frozen=True)
class Boot:
    """What one fresh boot brought in a cell.

    Args:
        figures: Estimates in natural units, as `estimate` gives them.
        canary: Readings around it, in seconds, by name.
        faults: Why no verdict may rest on it, empty where one may.
        account: Where its tokens came from; None where that is not known, or the boot ended early.
        foreign: Why it cannot be compared with anything: others used the servers at the same time. Empty where not.
    """

    figures: Mapping[str, float]
    canary: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str] = ()
    account: TokenAccount | None = None
    foreign: Sequence[str] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured in a cell.

    Args:
        boots: All boots so far; of one cell, one workload and one build.
        comparability: Keys that must be equal to the baseline's.
        workload: Hash of what was to be sent.
    """

    boots: Sequence[Boot]
    comparability: Mapping[str, str]
    workload: str


@dataclass(frozen=True)
class Gate:
    """One metric of a cell, then and now. Effects are log ratios, positive is worse; `share` makes percent of them.

    Args:
        metric: Which.
        outcome: What it says after this look.
        old: Geometric mean of the baseline's boots, natural unit.
        new: Geometric mean of the new boots.
        effect: By how much it is worse.
        lower: It is worse by at least this, at the level of `regressed`.
        upper: And by at most this, at the level of `pass`.
        margin: What `upper` must stay below to pass.
        sd: Of a boot.
        df: Degrees of freedom of `sd`.
        explained: What the machine's speed has made worse; it is in `new`, and not in `effect` and the bounds.
    """

    metric: Metric
    outcome: Outcome
    old: float
    new: float
    effect: float
    lower: float
    upper: float
    margin: float
    sd: float
    df: int
    explained: float = 0.0

    @property
    def ratio(self) -> float:
        """New over old, natural units."""
        return self.new / self.old


@dataclass(frozen=True)
class CellVerdict:
    """The outcome for one cell after a look.

    Args:
        status: Only `pass` and `improved` succeed; `needs-boot` is not final.
        gates: Every judged metric, in the order of the profile; empty where nothing could be compared.
        reasons: Why, where the status is not the gates' alone.
        notes: What a reader should know besides.
        boots: How many new boots it rests on.
        fixed_boots: How many a design without looks would have taken.
    """

    status: Status
    gates: tuple[Gate, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    boots: int = 0
    fixed_boots: int = 0

    @property
    def final(self) -> bool:
        """Whether no further boot is wanted."""
        return self.status != "needs-boot"


def counted(count: int, unit: str) -> str:
    """Return a number of boots or pairs in words: `1 boot`, `2 boots`."""
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def share(log_ratio: float) -> float:
    """Return a log ratio as a share: +0.0953 is 0.10, ten percent more time (or throughput down to 1/1.10)."""
    return math.expm1(log_ratio)
