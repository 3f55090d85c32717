"""Figures by name, typed: what a wrong name, a figure that is missing and one of an invalid run come to.

A wrong name is an AttributeError, and an error of mypy and pyright. A figure that was not measured, and every figure of
an invalid run, raises `NotMeasuredError`: a test that holds one against a limit cannot pass by accident.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_kvcache.errors import NotMeasuredError


@dataclass(frozen=True)
class Figures:
    """The figures of a load, or their means over several boots.

    Args:
        figures: All that were measured, by name with the unit last (`ttft_p99_s`), also those of an invalid run: for
            storing them, and for `.get`.
        faults: Why no verdict may rest on the run, empty where one may.
        where: What errors call it.
    """

    figures: Mapping[str, float] = field(repr=False)
    faults: tuple[str, ...]
    where: str = field(repr=False)

    @property
    def valid(self) -> bool:
        """Whether the tier and the client did their work, so that figures mean what they say."""
        return not self.faults

    @property
    def ttft(self) -> Ttft:
        """Time to first token (s): from the actual send to the first token."""
        return Ttft(self, "ttft")

    @property
    def tpot(self) -> Latency:
        """Time per output token (s) of a request: from its first token to its last, over the tokens after the first."""
        return Latency(self, "tpot")

    @property
    def itl(self) -> Latency:
        """Inter-token latency (s): between two streamed chunks of an answer, over all answers."""
        return Latency(self, "itl")

    @property
    def tokens_per_s(self) -> float:
        """Processing speed: prompt and generated tokens of finished requests a second.

        The seconds are those from the first send to the last token, as in the summary of LMCache's `multi-round-qa.py`.
        """
        return self.value("tokens_per_s")

    @property
    def requests_per_s(self) -> float:
        """The processing speed that LMCache's `multi-round-qa.py` prints: finished requests a second, same seconds."""
        return self.value("requests_per_s")

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode throughput of a request: generated tokens over the time after the first token, both summed."""
        return self.value("decode_tokens_per_s")

    @property
    def qps_delivered(self) -> float:
        """Requests that were sent, a second of the time in which requests were started."""
        return self.value("qps_delivered")

    @property
    def cached_share(self) -> float:
        """Share (0 to 1) of prompt tokens that the answering server did not compute, as it says with each answer."""
        return self.value("cached_share")

    @property
    def shares(self) -> Shares:
        """Where the KV of the prompt tokens came from, as the counters of servers and LMCache say."""
        return Shares(self)

    def value(self, name: str) -> float:
        """Return a figure by its name in `figures`.

        Raises:
            NotMeasuredError: The run is invalid, or has no such figure.
        """
        if self.faults:
            raise NotMeasuredError(
                f"{name} is one of an invalid run: {'; '.join(self.faults)}",
                where=self.where,
                todo="the raw number is in `.figures`, which no test should rest on",
            )
        found = self.figures.get(name, math.nan)
        if math.isnan(found):
            raise NotMeasuredError(
                f"{name} was not measured; measured: {', '.join(sorted(self.figures)) or 'nothing'}", where=self.where
            )
        return found


@dataclass(frozen=True)
class Latency:
    """Mean and quantiles of a time, over finished requests; each raises `NotMeasuredError` where it is not there.

    Args:
        of: Whose.
        name: What all of its figures begin with.
    """

    of: Figures = field(repr=False)
    name: str

    @property
    def mean_s(self) -> float:
        """Arithmetic mean (s)."""
        return self.of.value(f"{self.name}_mean_s")

    @property
    def p50_s(self) -> float:
        """Median (s)."""
        return self.of.value(f"{self.name}_p50_s")

    @property
    def p90_s(self) -> float:
        """90th percentile (s)."""
        return self.of.value(f"{self.name}_p90_s")

    @property
    def p99_s(self) -> float:
        """99th percentile (s)."""
        return self.of.value(f"{self.name}_p99_s")


@dataclass(frozen=True)
class Ttft(Latency):
    """Time to first token: as `Latency`, and the mean that baselines are compared by."""

    @property
    def geomean_s(self) -> float:
        """Geometric mean (s), the longest and the shortest 5 % of requests counted as the next one."""
        return self.of.value("ttft_geomean_s")


@dataclass(frozen=True)
class Shares:
    """Shares (0 to 1) of all prompt tokens by where their KV came from; together they are 1.

    Args:
        of: Whose.
    """

    of: Figures = field(repr=False)

    @property
    def computed(self) -> float:
        """Computed by the engine."""
        return self.of.value("share_computed")

    @property
    def device(self) -> float:
        """From vLLM's own prefix cache."""
        return self.of.value("share_device")

    @property
    def l1(self) -> float:
        """From LMCache's CPU RAM. An LMCache that does not tell L1 from L2 (before 0.5.5) has `unsplit` instead."""
        return self.of.value("share_l1")

    @property
    def l2(self) -> float:
        """From LMCache's shared storage. An LMCache that does not tell L1 from L2 has `unsplit` instead."""
        return self.of.value("share_l2")

    @property
    def unsplit(self) -> float:
        """From LMCache, which does not say from which of the two; not measured where it does."""
        return self.of.value("share_unsplit")

    @property
    def other(self) -> float:
        """From a connector, and LMCache did not find them."""
        return self.of.value("share_other")

    @property
    def lost(self) -> float:
        """Found by a lookup, and the load failed."""
        return self.of.value("share_lost")
