"""One request over the wire and its answer: what a caller submits to `Wire`, and gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_kvcache.client.framing import Pieces

#: The words with which `Exchange.failed` begins, one constant for each kind of failure.
NO_CONNECTION, CLOSED, TIMED_OUT, ENDED = "no connection", "connection closed", "timed out", "the run was ended first"
STALLED, MALFORMED = "stalled", "not HTTP"


@dataclass(eq=False)
class Exchange:
    """One request and what came back. Times are CLOCK_MONOTONIC, in seconds.

    Args:
        payload: The whole request, head and body; empty where `fetch` has it.
        due_s: When the request is to be sent.
        deadline_s: When the exchange is given up.
        done: Called once with the exchange when it is over, whether it succeeded or failed.
        fetch: Returns the payload when the request is due; None where `payload` is there from the start. Requests of
            megabytes that are due in an hour need not be held until then.
        stall_s: The exchange is given up when nothing arrives for so long, counted from the send and from each arrival.
            Any bytes of the answer count, an SSE comment that keeps the connection alive as much as a token. None sets
            no such limit.
        place: Which of the wire's servers gets it.
        sent_s: When the last byte of the request left, by the kernel's stamp; where the kernel gives no stamp, when the
            kernel had taken that byte.
        pieces: The data that arrived, each piece with its arrival; interim responses (1xx) are left out.
        failed: What went wrong with the connection, "" where nothing did.
        resent: Whether the request was sent a second time, since the kept-alive connection was closed at once, so that
            the server had not read the request.
    """

    payload: bytes
    due_s: float
    deadline_s: float
    done: Callable[[Exchange], None]
    stall_s: float | None = None
    fetch: Callable[[], bytes] | None = None
    place: int = 0
    sent_s: float | None = None
    pieces: Pieces = field(default_factory=list)
    failed: str = ""
    resent: bool = False
