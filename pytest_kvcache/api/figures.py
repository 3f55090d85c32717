"""Typed figures of a load, read as attributes.

A wrong name is an AttributeError, and an error of mypy and pyright. A figure that was not measured, and every figure of
an invalid run, raises `NotMeasuredError`: a test that compares a figure with a limit cannot pass by accident.
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
        figures: All measured figures by name, the unit last (`ttft_p99_s`). An invalid run has them too, so that they
            can be stored or looked up with `.get`.
        faults: Reasons why no verdict may rest on the run; empty where a verdict may.
        where: Name of the run in error messages, such as its folder.
    """

    figures: Mapping[str, float] = field(repr=False)
    faults: tuple[str, ...]
    where: str = field(repr=False)

    @property
    def valid(self) -> bool:
        """Whether the tier and the client did their work, so that the figures can be trusted."""
        return not self.faults

    @property
    def ttft(self) -> Ttft:
        """Time to first token (s): from the actual send to the first token."""
        return Ttft(self, "ttft")

    @property
    def tpot(self) -> Latency:
        """Time per output token (s) of a request: from its first to its last token, over the tokens after the first."""
        return Latency(self, "tpot")

    @property
    def itl(self) -> Latency:
        """Inter-token latency (s): the time between two streamed chunks of an answer, over all answers."""
        return Latency(self, "itl")

    @property
    def tokens_per_s(self) -> float:
        """Processing speed: prompt and generated tokens of finished requests per second.

        The time runs from the first send to the last token, as in the summary of LMCache's `multi-round-qa.py`.
        """
        return self.value("tokens_per_s")

    @property
    def requests_per_s(self) -> float:
        """Finished requests per second, over the same time as `tokens_per_s`.

        LMCache's `multi-round-qa.py` prints this figure as processing speed.
        """
        return self.value("requests_per_s")

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode throughput of a request (tokens/s): generated tokens over the time after the first token.

        Both are summed over the finished requests before they are divided.
        """
        return self.value("decode_tokens_per_s")

    @property
    def qps_delivered(self) -> float:
        """Requests sent per second of the time in which requests were started."""
        return self.value("qps_delivered")

    @property
    def cached_share(self) -> float:
        """Share (0 to 1) of prompt tokens that the server did not compute, as the server reports with each answer."""
        return self.value("cached_share")

    @property
    def shares(self) -> Shares:
        """Where the KV of the prompt tokens came from, by the counters of vLLM and LMCache."""
        return Shares(self)

    def value(self, name: str) -> float:
        """Return a figure by its name in `figures`.

        Raises:
            NotMeasuredError: The run is invalid or has no such figure.
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
    """Mean and quantiles of a time over finished requests; a figure that is missing raises `NotMeasuredError`.

    Args:
        of: The figures that these belong to.
        name: First word of the figures' names (`ttft`).
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
    """Time to first token: the figures of `Latency`, and the mean by which boots are compared with a baseline."""

    @property
    def geomean_s(self) -> float:
        """Winsorized geometric mean (s): each end's 5 % of requests count as the nearest of the other 90 %."""
        return self.of.value("ttft_geomean_s")


@dataclass(frozen=True)
class Shares:
    """Shares (0 to 1) of all prompt tokens by where their KV came from; those that are measured add up to 1.

    Args:
        of: The figures that these belong to.
    """

    of: Figures = field(repr=False)

    @property
    def computed(self) -> float:
        """Share of prompt tokens that the engine computed."""
        return self.of.value("share_computed")

    @property
    def device(self) -> float:
        """Share of prompt tokens from vLLM's own prefix cache."""
        return self.of.value("share_device")

    @property
    def l1(self) -> float:
        """Share from LMCache's CPU RAM; an LMCache before 0.5.5 does not tell L1 from L2 and has `unsplit` instead."""
        return self.of.value("share_l1")

    @property
    def l2(self) -> float:
        """Share from LMCache's shared storage; an LMCache before 0.5.5 has `unsplit` instead."""
        return self.of.value("share_l2")

    @property
    def unsplit(self) -> float:
        """Share from L1 and L2 together, where LMCache does not tell the two apart; elsewhere it is not measured."""
        return self.of.value("share_unsplit")

    @property
    def other(self) -> float:
        """Share that came through a connector although LMCache did not find these tokens."""
        return self.of.value("share_other")

    @property
    def lost(self) -> float:
        """Share that a lookup of LMCache found and that could not be loaded."""
        return self.of.value("share_lost")
