"""Tier kinds by name, ours and third parties', from the entry point group `pytest_kvcache.tiers`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "pytest_kvcache.tiers"


@cache
def tier_kinds() -> dict[str, EntryPoint]:
    """Return the entry point of every tier kind that is installed, by the name that `kind =` takes."""
    return {point.name: point for point in entry_points(group=GROUP)}
