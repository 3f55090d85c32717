"""When a run may end before its time: after a whole round, once its own noise is small beside that between boots."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import PositiveFloat

from pytest_kvcache.config.strict import Strict
from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.verdict import rounds


class StopRule(Strict):
    """What a load process must know to stop early (`verdict/rounds.py` has the rule and its sources).

    Args:
        round_s: Seconds of a round of all users.
        spreads: sd of a boot on the log scale, by metric.
        least_rounds: Fewer are never enough.
    """

    round_s: PositiveFloat
    spreads: Mapping[str, PositiveFloat]
    least_rounds: int = rounds.LEAST_ROUNDS

    def whole_rounds(self, elapsed_s: float) -> int:
        """Return how many rounds are over."""
        return int(elapsed_s / self.round_s + 1e-9)

    def enough(self, rows: list[RequestRecord], *, count: int) -> bool:
        """Return whether `count` rounds are enough; False while a request of them is still under way.

        Args:
            rows: Those that have ended.
            count: Whole rounds.
        """
        if count < self.least_rounds:
            return False
        return rounds.enough(records.to_frame(rows), rounds=count, round_s=self.round_s, spreads=dict(self.spreads))
