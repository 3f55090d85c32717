"""One row for every request that was to be sent, and the file that keeps them.

A load process starts with each load and imports no pandas for it: `table.py` has the same rows as a DataFrame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from pytest_kvcache.runs.files import replace_whole

OK = "ok"
HTTP_ERROR = "http-error"
NO_CONNECTION = "no-connection"
BROKEN = "broken-stream"
STALLED = "stalled"
TIMED_OUT = "timed-out"
MALFORMED = "malformed"
EMPTY = "empty-answer"
CANCELLED = "cancelled"
NOT_SENT = "not-sent"


@dataclass
class RequestRecord:
    """One request. Times are in seconds after the start of the run, on the client's monotonic clock.

    Args:
        user: Number of the user.
        round: Number of the question in the user's session, from 1.
        intended_start_s: When the schedule wants it.
        due_s: When it was to be sent: then, or at the end of the user's previous answer where that came later.
        actual_start_s: When the last byte of it was with the kernel.
        first_token_s: When the first non-empty token arrived.
        last_token_s: When the last one did.
        intended_prompt_tokens: As the workload made it, where it knows.
        intended_generated_tokens: As was asked for, where answers have an exact length.
        prompt_tokens: As the server counted them.
        generated_tokens: As the server counted them.
        cached_tokens: Prompt tokens that the server did not compute.
        status: `ok`, or what went wrong.
        error: In words.
        server: Name of the server that answered.
        server_queue_s: Its own queue time: from the scheduler's first sight of the request to the start of its work.
        server_ttft_s: Its own time from there to the first token.
        residual_s: The client's TTFT less both: network, router, HTTP, tokenizing, waiting for a running step of the
            engine before the scheduler saw it, and what the client adds.
        token_times_s: Arrival of each streamed chunk that held text.
    """

    user: int
    round: int
    intended_start_s: float
    due_s: float | None = None
    actual_start_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    intended_prompt_tokens: int | None = None
    intended_generated_tokens: int | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    cached_tokens: int | None = None
    status: str = NOT_SENT
    error: str = ""
    server: str = ""
    server_queue_s: float | None = None
    server_ttft_s: float | None = None
    residual_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status != NOT_SENT or bool(self.error)

    @property
    def ttft_s(self) -> float | None:
        """From the actual send to the first token."""
        if self.first_token_s is None or self.actual_start_s is None:
            return None
        return self.first_token_s - self.actual_start_s


def in_order(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Return them in the order of their intended starts, and of their users where those are the same."""
    return sorted(records, key=lambda record: (record.intended_start_s, record.user))


def save(records: Iterable[RequestRecord], path: Path) -> None:
    """Write a row for each as Parquet, in order; a file of that name is replaced only by a whole one.

    Args:
        records: Of one run.
        path: Integers without a value are null in it, times without one too.
    """
    # Imported when the measurement is over.
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    hints = get_type_hints(RequestRecord)
    schema = pa.schema(
        (name, pa.list_(pa.float64()) if get_origin(hint) is list else types[(*get_args(hint), hint)[0]])
        for name, hint in hints.items()
    )
    table = pa.Table.from_pylist([asdict(record) for record in in_order(records)], schema=schema)
    replace_whole(path, lambda partial: parquet.write_table(table, partial))
