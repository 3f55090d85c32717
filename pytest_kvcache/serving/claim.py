"""What a tier claims of where KV comes from; `proof/claims.py` holds it against the counters."""

from __future__ import annotations

from enum import StrEnum


class Claim(StrEnum):
    """Where a tier says that KV comes from, beyond the device cache."""

    DEVICE = "device"
    """Nowhere else: vLLM alone."""
    L1 = "l1"
    """LMCache's CPU RAM of the same server."""
    L2 = "l2"
    """A storage that the servers share, in front of it L1."""
