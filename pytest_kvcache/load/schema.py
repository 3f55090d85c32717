"""The columns of a table of requests (`requests.parquet`) and their version, as docs/files.md has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultsError

if TYPE_CHECKING:
    import pyarrow as pa

#: Version of the schema that is written. A column that is removed, renamed or gets another type, unit or meaning needs
#: the next number; a new column at the end does not.
VERSION = 1
#: Key of the Parquet file's own metadata that holds the version, as a decimal number.
VERSION_KEY = b"pytest_kvcache.requests_version"


@dataclass(frozen=True)
class Column:
    """A column of a table of requests.

    Args:
        name: The field of `RequestRecord`, its unit last.
        type: `int64`, `float64`, `string`, `bool` or `list<float64>`.
        unit: `s` (seconds after the start of the run, or a duration where the meaning says so), `tokens`, or "".
        meaning: What the value is.
        null_when: When there is none; "never" where there always is one.
        later: Whether files of this version may lack it, since it came later; it is then empty.
    """

    name: str
    type: str
    unit: str
    meaning: str
    null_when: str
    later: bool = False


_NOT_SENT, _NOT_TOLD = "the request was not sent", "the server did not tell it"
COLUMNS = (
    Column("user", "int64", "", "number of the user; below 0 for a request that no cache can have", "never"),
    Column("round", "int64", "", "number of the question in the user's session, from 1", "never"),
    Column("intended_start_s", "float64", "s", "when the schedule wants the request sent", "never"),
    Column("due_s", "float64", "s", "the later of the intended start and the end of the user's last answer", _NOT_SENT),
    Column("actual_start_s", "float64", "s", "when the last byte of the request left", _NOT_SENT),
    Column("first_token_s", "float64", "s", "when the first output of the model arrived", "no output arrived"),
    Column("last_token_s", "float64", "s", "when the last output of the model arrived", "no output arrived"),
    Column("intended_prompt_tokens", "int64", "tokens", "length of the prompt by the workload", "it is not known"),
    Column(
        "intended_generated_tokens", "int64", "tokens", "length of the answer by the workload", "answers may end early"
    ),
    Column("prompt_tokens", "int64", "tokens", "length of the prompt, as the server counted it", _NOT_TOLD),
    Column("generated_tokens", "int64", "tokens", "length of the answer, as the server counted it", _NOT_TOLD),
    Column("cached_tokens", "int64", "tokens", "prompt tokens that the server did not compute", _NOT_TOLD),
    Column("status", "string", "", "`ok`, or in a word what went wrong", "never"),
    Column("error", "string", "", "what went wrong; empty where nothing did", "never"),
    Column("server", "string", "", "name of the server that answered; empty where none is known", "never"),
    Column("server_queue_s", "float64", "s", "duration: the server's own queue time", _NOT_TOLD),
    Column("server_ttft_s", "float64", "s", "duration: from the end of the queue to the first token", _NOT_TOLD),
    Column("residual_s", "float64", "s", "duration: TTFT less the server's queue time and its TTFT", _NOT_TOLD),
    Column("resent", "bool", "", "whether it was sent again, since the server had closed the connection", "never"),
    Column("first_token_shared", "bool", "", "whether the first token arrived in one read with a later one", "never"),
    Column("token_times_s", "list<float64>", "s", "arrival of each streamed chunk that held output", "never (empty)"),
    Column(
        "node", "string", "", "address of the load node that sent it; empty without load nodes", "never", later=True
    ),
)


def arrow_schema() -> pa.Schema:
    """Return the Arrow schema that files are written with, its metadata holding the version."""
    # Imported only here: the load process writes its table when the measurement is over.
    import pyarrow as pa  # noqa: PLC0415

    types = {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "list<float64>": pa.list_(pa.float64()),
    }
    return pa.schema(
        [(column.name, types[column.type]) for column in COLUMNS], metadata={VERSION_KEY: str(VERSION).encode()}
    )


def check(found: pa.Schema, *, where: str) -> None:
    """Check that a file is a table of requests that this version reads.

    Args:
        found: Schema of the file. Files from before the version was written have none, and count as version 1.
        where: Name of the file, for errors.

    Raises:
        ResultsError: The file is of a newer or an unknown version, or lacks a column or has one of another type.
    """
    check_version((found.metadata or {}), where=where)
    later = {column.name for column in COLUMNS if column.later}
    for expected in arrow_schema():
        at = found.get_all_field_indices(expected.name)
        if not at and expected.name in later:
            continue
        if len(at) != 1:
            raise ResultsError(
                f"is no table of requests: column {expected.name} is {'missing' if not at else 'there twice'}",
                where=where,
            )
        if found.field(at[0]).type != expected.type:
            raise ResultsError(
                f"is no table of requests: column {expected.name} is {found.field(at[0]).type}, not {expected.type}",
                where=where,
            )


def check_version(metadata: Mapping[bytes, bytes], *, where: str) -> None:
    """Check the version in a file's metadata, as `check` does.

    Raises:
        ResultsError: The version is newer than `VERSION`, or no version.
    """
    text = metadata.get(VERSION_KEY, b"1").decode("utf-8", "replace")
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise ResultsError(f"has {text!r:.40} for {VERSION_KEY.decode()}, which is no version", where=where)
    if int(text) > VERSION:
        raise ResultsError(
            f"is a table of requests of version {int(text)}; this pytest-kvcache reads versions up to {VERSION}",
            where=where,
            todo="use the pytest-kvcache that wrote it, or a newer one",
        )


def markdown() -> str:
    """Return the table of docs/files.md."""
    rows: list[tuple[Any, ...]] = [("column", "type", "unit", "meaning", "null when"), ("---",) * 5]
    rows += [(f"`{each.name}`", f"`{each.type}`", each.unit, each.meaning, each.null_when) for each in COLUMNS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
