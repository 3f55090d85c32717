"""The steps of the probes, a function each; a test may change the storage between two steps.

The order is that of `probe.py`: `cold`, `again`, `reloaded`, `across`, `emptied`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pytest_kvcache.probes.client import ProbeReply
from pytest_kvcache.probes.sentinels import Sentinel
from pytest_kvcache.telemetry.counters import Counters
from pytest_kvcache.workload.tokens import Tokenizer


class Step(StrEnum):
    """When a sentinel was sent."""

    COLD = "cold"
    """Sent to its home first, before any server of this boot has seen it."""
    AGAIN = "again"
    """Sent to the same server again: the device cache has its KV."""
    RELOADED = "reloaded"
    """Sent to the same server after the device cache was emptied: LMCache's L1 has its KV."""
    ACROSS = "across"
    """Sent to the next server: only a shared storage has its KV."""
    EMPTIED = "emptied"
    """Sent to the same server after device cache and L1 were emptied: only a shared storage has its KV."""


@dataclass(frozen=True)
class SentinelAnswer:
    """A sentinel that was sent, and its answer.

    Args:
        step: Step in which it was sent.
        server: Name of the server that answered.
        sentinel: The sentinel.
        served: The answer, and where the prompt's KV came from.
    """

    step: Step
    server: str
    sentinel: Sentinel
    served: ProbeReply


class ProbedPair(Protocol):
    """What the probes need from a pair (`client.PairClient`)."""

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the vLLM servers."""

    @property
    def side_by_side(self) -> bool:
        """Whether several servers may be asked at once: each has counters that no other server's prompts move."""

    def tokenizer(self) -> Tokenizer:
        """Return the served tokenizer."""

    def counters(self, server: str) -> Mapping[str, Counters]:
        """Return the counters of a server and of the LMCache beside it, by component."""

    def ask(self, server: str, sentinel: Sentinel) -> ProbeReply:
        """Send a sentinel to one server."""

    def drain(self, server: str, *, stored_chunks: int = 0) -> None:
        """Return when a server and its LMCache have nothing under way."""

    def reset_device(self, server: str) -> None:
        """Empty vLLM's prefix cache."""

    def clear_l1(self, server: str) -> None:
        """Empty the L1 of the LMCache beside a server."""


def cold(pair: ProbedPair, sentinels: Sequence[Sentinel]) -> list[SentinelAnswer]:
    """Send each sentinel to its home."""
    return _at_home(pair, sentinels, Step.COLD)


def again(pair: ProbedPair, sentinels: Sequence[Sentinel]) -> list[SentinelAnswer]:
    """Send each sentinel to its home once more."""
    return _at_home(pair, sentinels, Step.AGAIN)


def reloaded(pair: ProbedPair, sentinels: Sequence[Sentinel]) -> list[SentinelAnswer]:
    """Empty the device caches and send each sentinel to its home once more."""
    for sentinel in sentinels:
        pair.drain(sentinel.home)
        pair.reset_device(sentinel.home)
    return _at_home(pair, sentinels, Step.RELOADED)


def across(pair: ProbedPair, sentinels: Sequence[Sentinel], *, stored_chunks: int = 0) -> list[SentinelAnswer]:
    """Wait until what each server computed is stored, and send each sentinel to the next server.

    Args:
        pair: A pair of more than one server.
        sentinels: The sentinels that their homes have answered.
        stored_chunks: Chunks that a sentinel leaves in the shared storage, 0 where there is no such storage.
    """
    for sentinel in sentinels:
        pair.drain(sentinel.home, stored_chunks=stored_chunks)
    names = [*pair.servers, *pair.servers]
    return _asked(pair, [(names[names.index(each.home) + 1], each) for each in sentinels], Step.ACROSS)


def emptied(pair: ProbedPair, sentinels: Sequence[Sentinel]) -> list[SentinelAnswer]:
    """Fill each server's caches with its sentinel, empty them, check that they are empty, and empty them again."""
    _at_home(pair, sentinels, Step.EMPTIED)
    _empty(pair)
    found = _at_home(pair, sentinels, Step.EMPTIED)
    _empty(pair)
    return found


def _empty(pair: ProbedPair) -> None:
    for what in _EMPTYING:
        for server in pair.servers:
            what(pair, server)


_EMPTYING: tuple[Callable[[ProbedPair, str], None], ...] = (
    lambda pair, server: pair.drain(server),
    lambda pair, server: pair.reset_device(server),
    lambda pair, server: pair.clear_l1(server),
)


def _at_home(pair: ProbedPair, sentinels: Sequence[Sentinel], step: Step) -> list[SentinelAnswer]:
    return _asked(pair, [(each.home, each) for each in sentinels], step)


def _asked(pair: ProbedPair, what: Sequence[tuple[str, Sentinel]], step: Step) -> list[SentinelAnswer]:
    """Send a sentinel to each of some servers, to all at once where that is allowed, and return when all have ended."""

    def ask(each: tuple[str, Sentinel]) -> SentinelAnswer:
        server, sentinel = each
        return SentinelAnswer(step, server, sentinel, pair.ask(server, sentinel))

    threads = ThreadPoolExecutor(max(1, len(what)) if pair.side_by_side else 1)
    try:
        return list(threads.map(ask, what))
    except Exception:
        threads.shutdown()  # what is still under way would be counted as a part of what comes next
        raise
    finally:
        # An interruption does not wait: whatever is under way ends with the servers.
        threads.shutdown(wait=False, cancel_futures=True)
