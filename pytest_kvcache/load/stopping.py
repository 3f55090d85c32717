"""When a run may end early: after a whole round, once noise within the boot is small beside that between boots."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import NonNegativeFloat, PositiveFloat

from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.strict import Strict


class StopRule(Strict):
    """What a load process must know to stop early (`verdict/rounds.py` has the rule and its sources).

    Args:
        round_s: Time in which every user asks once.
        spreads: Standard deviation of a boot on the log scale, of each metric that is judged.
    """

    round_s: PositiveFloat
    spreads: Mapping[str, NonNegativeFloat]

    def whole_rounds(self, elapsed_s: float) -> int:
        """Return how many rounds are over."""
        return int(elapsed_s / self.round_s + 1e-9)

    def enough(self, rows: list[RequestRecord], *, count: int) -> bool:
        """Return whether `count` rounds are enough; False while a request of them is still under way.

        Args:
            rows: The rows that have ended.
            count: Number of whole rounds that are over.
        """
        # Imported only here: a load process seldom needs pandas and SciPy.
        from pytest_kvcache.load.table import to_frame  # noqa: PLC0415
        from pytest_kvcache.verdict import rounds  # noqa: PLC0415

        return rounds.enough(to_frame(rows), rounds=count, round_s=self.round_s, spreads=dict(self.spreads))
