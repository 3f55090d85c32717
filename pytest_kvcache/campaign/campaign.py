"""What a session owns: the numbers of its boots, what they brought, and what cut them short."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.baselines.store import Write
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.errors import KvCacheError, RunError

if TYPE_CHECKING:
    from pytest_kvcache.campaign.gains import GainResult


@dataclass(frozen=True)
class CellKey:
    """Names a cell within a session.

    Args:
        tier: Name of the tier.
        context_tokens: Length of the user context.
        workload: Digest of what is sent at that length.
    """

    tier: str
    context_tokens: int
    workload: str


class Campaign:
    """The one owner of what a session measures. Nothing else counts boots, keeps results or notes interruptions.

    Attributes:
        results: What was measured, or why not, by cell.
        writes: Baselines to write at the end of the session.
        gains: What tiers bring over others, or why that could not be measured, by tier, other tier and context.
        busy: Something is being booted or measured.
        interruptions: By tier, what cut a boot, its probes or a load short: nothing of that tier is booted again.
    """

    def __init__(self) -> None:
        self.results: dict[CellKey, CellResult | KvCacheError] = {}
        self.writes: list[Write] = []
        self.gains: dict[tuple[str, str, int], list[GainResult] | KvCacheError] = {}
        self.interruptions: dict[str, RunError] = {}
        self.busy = False
        self._boots: Counter[tuple[str, str]] = Counter()
        self._latest: dict[str, str] = {}
        self._shared: str | None = None

    @property
    def measured(self) -> list[CellResult]:
        """All results, in the order in which they were measured."""
        return [each for each in self.results.values() if isinstance(each, CellResult)]

    @property
    def failures(self) -> dict[CellKey, KvCacheError]:
        """Why cells could not be measured."""
        return {key: each for key, each in self.results.items() if isinstance(each, KvCacheError)}

    def next_boot(self, tier: str, kind: str = "boot") -> str:
        """Return the name of the tier's next boot, which no other boot of the session has.

        Args:
            tier: Name of the tier.
            kind: What the name begins with: boots of each kind are counted from 1.
        """
        self._boots[tier, kind] += 1
        name = self._latest[tier] = f"{kind}-{self._boots[tier, kind]}"
        return name

    def result(self, key: CellKey) -> CellResult | None:
        """Return what was measured in a cell, None where nothing was yet.

        Raises:
            KvCacheError: The cell could not be measured, or its tier was interrupted.
        """
        found = self.results.get(key)
        if found is None:
            self.check(key.tier)
        if isinstance(found, KvCacheError):
            raise found
        return found

    def check(self, tier: str) -> None:
        """Return if the tier may be booted.

        Raises:
            RunError: It was interrupted in this session.
        """
        if tier in self.interruptions:
            raise self.interruptions[tier]

    @contextlib.contextmanager
    def measuring(self, tier: str, keys: Sequence[CellKey]) -> Iterator[None]:
        """Measure cells of a tier in the body: an error that ends it is that of these cells, and they never boot again.

        Whatever else ends it (a timeout, Ctrl-C, `pytest.exit`, a fault of our own) is an interruption of the whole
        tier.

        Raises:
            RunError: The tier was interrupted, or a shared pair runs.
        """
        if self._shared is not None:
            raise RunError(
                "multi_round_qa boots pairs of its own, and would measure beside the one of vllm_pair, which runs until"
                " the last test of the tier: name vllm_pair among a test's arguments, so that it comes after those that"
                " measure, and never use the two in one test",
                where=f"tier {self._shared}",
            )
        self.check(tier)
        try:
            with self._noting(tier):
                yield
        except KvCacheError as error:
            self.results.update(dict.fromkeys(keys, error))
            raise

    def keep(self, key: CellKey, result: CellResult) -> None:
        """Keep what was measured in a cell, and what is to become its baseline."""
        self.results[key] = result
        if result.write is not None:
            self.writes.append(result.write)

    @contextlib.contextmanager
    def sharing(self, tier: str) -> Iterator[None]:
        """Keep a pair of the tier running in the body, for tests that talk to it themselves: none of them measures."""
        self._shared = tier
        try:
            yield
        finally:
            self._shared = None

    @contextlib.contextmanager
    def booting(self, tier: str) -> Iterator[None]:
        """Boot a shared pair of the tier in the body; what interrupts it is noted.

        Raises:
            RunError: The tier was interrupted before.
        """
        self.check(tier)
        with self._noting(tier):
            yield

    @contextlib.contextmanager
    def _noting(self, tier: str) -> Iterator[None]:
        self.busy = True
        try:
            yield
        except KvCacheError:
            raise
        except BaseException as error:
            self.interruptions[tier] = _interruption(error, tier, self._latest.get(tier, "what comes before its boots"))
            raise
        finally:
            self.busy = False


def _interruption(error: BaseException, tier: str, boot: str) -> RunError:
    said = str(error).strip().partition("\n")[0]
    ended = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return RunError(
        f"the measurement ended with {ended} (in {boot}): no test of this tier boots again in this session",
        where=f"tier {tier}",
    )
