"""The claim of a tier about where KV comes from; `proof/claims.py` holds the claim against the counters."""

from __future__ import annotations

from enum import StrEnum


class Claim(StrEnum):
    """Where a tier says that KV comes from, beyond the device cache."""

    DEVICE = "device"
    """KV comes from nowhere else: vLLM runs alone."""
    L1 = "l1"
    """KV comes from the CPU RAM of the same server's LMCache."""
    L2 = "l2"
    """KV comes from a storage that the servers share, with L1 in front of it."""
