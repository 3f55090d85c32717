"""The row of each request that was to be sent, and the file that keeps the rows.

A load process is started for each load, so this module imports no pandas; `table.py` has the same rows as a DataFrame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.load import schema
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
#: Rows of a row group of the file.
_GROUP_ROWS = 20_000


@dataclass
class RequestRecord:
    """One request. Times are in seconds after the start of the run, on the client's monotonic clock.

    Args:
        user: Number of the user; below zero for a yardstick, a request that no cache can have.
        round: Number of the question in the user's session, from 1.
        intended_start_s: When the schedule wants the request sent.
        due_s: When the request was to be sent: at `intended_start_s`, or at the end of the user's previous answer where
            that came later.
        actual_start_s: When the last byte of the request left (`Exchange.sent_s`).
        first_token_s: When the first output of the model arrived: text, reasoning, a call of a tool, or a refusal.
        last_token_s: When the last output arrived.
        intended_prompt_tokens: Length of the prompt, where the workload knows it.
        intended_generated_tokens: Length of the answer that was asked for, where answers have an exact length.
        prompt_tokens: Length of the prompt, as the server counted it.
        generated_tokens: Length of the answer, as the server counted it.
        cached_tokens: Prompt tokens that the server did not compute.
        status: `ok`, or what went wrong.
        error: What went wrong, in words.
        server: Name of the server that answered.
        server_queue_s: The server's own queue time: from the scheduler's first sight of the request to the start of the
            work on it.
        server_ttft_s: The server's own time from the start of that work to the first token.
        residual_s: The client's TTFT less the two times of the server: network, router, HTTP, tokenizing, waiting for a
            running step of the engine before the scheduler saw the request, and what the client adds.
        resent: Whether the request was sent twice, since the server had closed the kept connection before it read the
            first one; stamps are those of the second.
        first_token_shared: Whether the read that returned the first token returned a later one too, or its beginning:
            the stamp of the first is then that of the later one.
        token_times_s: Arrival of each streamed chunk that held output.
        node: Address of the load node that sent it; "" where no load nodes were used.
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
    resent: bool = False
    first_token_shared: bool = False
    token_times_s: list[float] = field(default_factory=list)
    node: str = ""

    @property
    def over(self) -> bool:
        """Whether the request has ended, or will never be sent."""
        return self.status != NOT_SENT or bool(self.error)

    @property
    def ttft_s(self) -> float | None:
        """TTFT, from the actual send to the first token; None where either is missing."""
        if self.first_token_s is None or self.actual_start_s is None:
            return None
        return self.first_token_s - self.actual_start_s


def in_order(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Return the records in the order of their intended starts, and of their users where two starts are the same."""
    return sorted(records, key=lambda record: (record.intended_start_s, record.user))


def save(records: Iterable[RequestRecord], path: Path) -> None:
    """Write a row for each record as Parquet, in order; a file that is there is replaced only by a whole one.

    Args:
        records: Records of one run.
        path: The file; integers and times without a value are null in it. `schema.py` says what is in its columns.
    """
    # Imported only here, when the measurement is over.
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    rows, columns = in_order(records), schema.arrow_schema()

    def write(partial: Path) -> None:
        # Arrow itself takes no name with bytes that are no text.
        with partial.open("wb") as opened, parquet.ParquetWriter(opened, columns) as writer:
            for at in range(0, len(rows), _GROUP_ROWS):  # a copy of all rows would take more memory than the rows
                group = rows[at : at + _GROUP_ROWS]
                arrays = [pa.array([getattr(row, each.name) for row in group], type=each.type) for each in columns]
                writer.write_table(pa.Table.from_arrays(arrays, schema=columns))

    replace_whole(path, write)
