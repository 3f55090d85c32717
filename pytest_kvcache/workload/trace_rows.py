"""The rows of traces, as the tools that write traces mean them.

A trace has one JSON object on each line. Tools agree in the lengths and differ in the rest:

- Mooncake (Qin et al., FAST 2025): `timestamp` in milliseconds, `hash_ids` of blocks of 512 tokens; each row is a whole
  prompt.
- Alibaba's Bailian traces: `timestamp` in seconds, blocks of 16 tokens. `chat_id`, `parent_chat_id`, `type` and `turn`
  add nothing to what is sent, since each row is a whole prompt with its time.
- aiperf: rows of one `session_id` are the turns of a conversation. A later row has what is new in its turn, and a
  `delay` after the answer before it or a `timestamp`.
- dynamo: the same, but a later row has the whole prompt, and without a `delay` the turn begins so long after the
  answer as the timestamps are apart. In its delta traces a later row has what is new.

Keys by which a tool would send something else than a prompt of that length are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.strict import Strict
from pytest_kvcache.workload.json_values import not_utf8, refuse_other_files

BLOCK_TOKENS = 512


@dataclass(frozen=True)
class TraceFormat:
    """What the rows of a trace mean.

    Args:
        block_tokens: Tokens that a hash id stands for, where nothing else is said.
        time_unit: Unit of the timestamps; "" for milliseconds where they are whole numbers.
        later_rows: Whether a later row of a session has the whole prompt, or what is new in its turn; "" where the
            format has no sessions.
        later_timestamps: What the timestamp of a later row without a delay says: when the turn begins, or by how much
            less the timestamp before it how long after the answer.
    """

    block_tokens: int = BLOCK_TOKENS
    time_unit: Literal["", "ms", "s"] = ""
    later_rows: Literal["", "whole", "added"] = ""
    later_timestamps: Literal["time", "gap"] = "time"


FormatName = Literal["mooncake", "bailian", "aiperf", "dynamo", "dynamo-delta"]
FORMATS: dict[FormatName, TraceFormat] = {
    "mooncake": TraceFormat(),
    "bailian": TraceFormat(block_tokens=16, time_unit="s"),
    "aiperf": TraceFormat(time_unit="ms", later_rows="added"),
    "dynamo": TraceFormat(time_unit="ms", later_rows="whole", later_timestamps="gap"),
    "dynamo-delta": TraceFormat(time_unit="ms", later_rows="added", later_timestamps="gap"),
}
_PROMPT, _REQUEST = "its row has the prompt itself", "its row has more fields of the request"
_PRIORITY, _GRAPH = "its row asks for a priority", "its row waits for other rows"
#: Keys of other tools' traces that change what is sent, or when.
_CHANGING = {
    **dict.fromkeys(("text_input", "input_text", "text", "texts", "prompt", "messages", "message_mode"), _PROMPT),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "its row has more than text"),
    **dict.fromkeys(("tools", "extra"), _REQUEST),
    "payload": "its row has the whole request",
    "turns": "its row has several requests",
    "context_mode": "its row says how the rows of a session build on each other; workload.trace_format says that",
    **dict.fromkeys(("priority", "strict_priority"), _PRIORITY),
    **dict.fromkeys(("wait_for", "branches", "prefix_reset", "tool_wait_ms"), _GRAPH),
    "output_token_ids": "its row has the answer itself",
}
#: Keys that say one thing, under the names that tools give them.
_NAMES = {
    "timestamp": ("timestamp", "created_time"),
    "input_length": ("input_length", "input_tokens", "isl"),
    "output_length": ("output_length", "output_tokens", "osl"),
    "delay": ("delay", "delay_ms"),
}
#: Blocks' hashes are 64 bits, which some tools write with a sign and others without.
HashId = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 64)]
_LINES = "write the trace as JSON lines: one object on each line, a row each"


class TraceRow(Strict):
    """One request of a trace; other keys are ignored.

    Args:
        timestamp: When the request came, in the trace's unit of time; None where the row does not say.
        input_length: Length of the prompt, or of what its turn adds to it (tokens).
        output_length: Length of the answer (tokens).
        hash_ids: One id for each block of those tokens; empty where the row does not say.
        session_id: The session of which the request is a turn; None for a request of its own.
        delay: How long after the answer before it the turn begins, in the trace's unit of time.
        delay_ms: The same where the key says that it is in milliseconds.
        block_size: Tokens that a hash id stands for, where the row says it.
        chat_id: A mark of Bailian's traces.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    timestamp: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] | None = Field(
        default=None, validation_alias=AliasChoices(*_NAMES["timestamp"])
    )
    input_length: PositiveInt = Field(validation_alias=AliasChoices(*_NAMES["input_length"]))
    output_length: PositiveInt = Field(validation_alias=AliasChoices(*_NAMES["output_length"]))
    hash_ids: tuple[HashId, ...] = ()
    session_id: str | int | None = None
    delay: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] | None = Field(
        default=None, validation_alias=AliasChoices(*_NAMES["delay"])
    )
    delay_ms: Any = None
    block_size: Any = Field(default=None, validation_alias=AliasChoices("block_size", "trace_block_size"))
    chat_id: Any = None

    @field_validator("*", mode="before")
    @classmethod
    def _keeps_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        # Hash ids have a type of their own, which is strict, and there are millions of them.
        return value if info.field_name == "hash_ids" else super()._keeps_its_type(value, info)

    @model_validator(mode="before")
    @classmethod
    def _says_each_thing_once(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key, why in _CHANGING.items():
            if data.get(key) is not None:
                raise ValueError(f"{key} is not supported ({why}); take it out where it is not meant")
        for names in _NAMES.values():
            said = [name for name in names if data.get(name) is not None]
            if len(said) > 1:
                raise ValueError(f"{said[0]} and {said[1]} say the same; take one out")
        # A key without a value is none; so are no hash ids, and a session without a name.
        empty = {key for key, value in data.items() if value is None}
        empty |= {key for key in ("hash_ids", "session_id") if data.get(key) in ([], "")}
        return {key: value for key, value in data.items() if key not in empty}


class NumberedRow(NamedTuple):
    """A row with its place.

    Args:
        number: Number of the line in the file, from 1.
        row: What it says.
    """

    number: int
    row: TraceRow


def read(path: Path, block_tokens: int = BLOCK_TOKENS) -> Iterator[NumberedRow]:
    """Yield the rows of the trace.

    Raises:
        ConfigError: The file cannot be read, or a line is malformed; the message names file, line and key.
    """
    try:
        refuse_other_files(path)
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield NumberedRow(number, _row(text, f"{path}: line {number}", block_tokens))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _row(text: str, where: str, block_tokens: int) -> TraceRow:
    # The standard library's parser takes what Python's own writer writes in keys that nobody asks for: NaN, 1e999.
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the line: Invalid JSON: {error}"[:160], where=where, todo=_LINES) from None
    if not isinstance(data, dict):
        raise ConfigError("the line: Input should be an object", where=where, todo=_LINES)
    try:
        row = TraceRow.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        others = " or ".join(_NAMES.get(key, ())[1:]) if first["type"] == "missing" else ""
        raise ConfigError(
            f"{key}: {first['msg'].removeprefix('Value error, ')}",
            where=where,
            todo=f"give it that name, or {others}" if others else "",
        ) from None
    if row.block_size not in (None, block_tokens):
        raise ConfigError(
            f"block_size: is {row.block_size!r:.40}, and a hash id is taken for {block_tokens} tokens",
            where=where,
            todo="say workload.block_tokens",
        )
    blocks = -(-row.input_length // block_tokens)
    if row.hash_ids and len(row.hash_ids) != blocks:
        raise ConfigError(
            f"hash_ids: {len(row.hash_ids)}, but {row.input_length} tokens are {blocks} blocks of {block_tokens}",
            where=where,
            todo="say workload.block_tokens, as 16 for Bailian's traces",
        )
    return row
