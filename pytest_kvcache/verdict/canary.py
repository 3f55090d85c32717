"""Did the machine run as fast as when the baseline was taken? Readings taken around each boot say so.

A canary is work that no change under test can touch: a matrix product, a read from the tier's storage. If it is slower
than it was, so is everything else, and a slower engine proves nothing. Measuring is not done here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

DEFAULT_TOLERANCE = 0.10


def differences(
    stored: Sequence[Mapping[str, float]],
    measured: Sequence[Mapping[str, float]],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> list[str]:
    """Return a line for each reading that is out of bounds; empty where the machine is as it was.

    A reading is held against the median of the baseline's readings of that name and must be within a factor of 1 +
    `tolerance` of it, or within the range of those readings where that is wider: what the baseline itself lived with is
    no difference. Faster is a difference too: the boots would look better than they are, and a regression could hide.
    A baseline without readings compares with anything.

    Args:
        stored: Readings of each boot of the baseline, positive seconds by name.
        measured: Readings of each new boot.
        tolerance: As a share.

    Raises:
        ValueError: The tolerance is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"a tolerance of {tolerance}")
    names = sorted({name for readings in stored for name in readings})
    lines = []
    for name in names:
        known = [readings[name] for readings in stored if name in readings]
        middle = statistics.median(known)
        low = min(middle / (1 + tolerance), *known)
        high = max(middle * (1 + tolerance), *known)
        for number, readings in enumerate(measured, start=1):
            value = readings.get(name)
            if value is None:
                lines.append(f"canary {name}: {middle:.4g} -> (not read) at boot {number}")
            elif not low <= value <= high:
                lines.append(
                    f"canary {name}: {middle:.4g} -> {value:.4g} at boot {number}"
                    f" ({value / middle - 1:+.0%};"
                    f" from {low / middle - 1:+.0%} to {high / middle - 1:+.0%} is as before)"
                )
    return lines
