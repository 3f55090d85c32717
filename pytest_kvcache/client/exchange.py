"""One request over the wire and what came back: the unit that a workload submits and gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_kvcache.client.framing import Pieces

#: How `failed` begins, by kind.
NO_CONNECTION, CLOSED, TIMED_OUT, ENDED = "no connection", "connection closed", "timed out", "the run was ended first"
STALLED, MALFORMED = "stalled", "not HTTP"


@dataclass(eq=False)
class Exchange:
    """One request and what came back. Times are CLOCK_MONOTONIC, in seconds.

    Args:
        payload: The whole request, head and body.
        due_s: When it is to be sent.
        deadline_s: When it is given up.
        done: Called once, when it is over either way.
        stall_s: Given up when nothing arrives for so long, counted from the send and from each arrival. Any bytes of
            the answer count, an SSE comment that keeps the connection alive as much as a token. None: never.
        sent_s: When the last byte of it left, by the kernel's stamp; where the kernel gives none, when it had the byte.
        pieces: What arrived, each with its arrival; interim responses (1xx) left out.
        failed: What went wrong with the connection, "" where nothing did.
        resent: Sent a second time, since the server had closed the kept-alive connection before it read the first one.
    """

    payload: bytes
    due_s: float
    deadline_s: float
    done: Callable[[Exchange], None]
    stall_s: float | None = None
    sent_s: float | None = None
    pieces: Pieces = field(default_factory=list)
    failed: str = ""
    resent: bool = False
