"""What LMCache's counters say against a tier: signs that it did not do what its name says."""

from __future__ import annotations

from collections.abc import Mapping

_SUBMITTED = "lmcache_mp_l2_store_submitted_objects_chunks_total"
_STORED = "lmcache_mp_l2_store_completed_objects_chunks_total"


def faults(grown: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a line for each LMCache server whose stores into the shared storage all failed.

    Answers still arrive then, only slower: LMCache says so in its log and nowhere else.

    Args:
        grown: By component, what its counters grew by during the run.
    """
    return [
        f"{name} handed {counters[_SUBMITTED]:.0f} chunks to the shared storage and none was stored: read its log"
        for name, counters in grown.items()
        if counters.get(_SUBMITTED) and not counters.get(_STORED)
    ]
