"""Requests from a Mooncake-style trace.

The trace has one JSON object on each line: `timestamp`, `input_length`, `output_length`, `hash_ids`. A hash id stands
for a block of `block_tokens` tokens and all that comes before the block: equal ids at the start of two prompts mean
equal prefixes, and nothing else is known of the text. Each block becomes as many words, which follow from its id. A
request is sent as long after the first request as in the trace, divided by `speed`. Requests that are longer than the
run's context length or than the model takes, or shorter than the chat template, are left out and told by their share
of the prompt tokens.

Blocks are of 512 tokens and timestamps in milliseconds in Mooncake's own traces (Qin et al., FAST 2025), of 16 tokens
and in seconds in Alibaba's Bailian traces (`chat_id`, `parent_chat_id`, `type` and `turn` add nothing to what is sent,
since each of their rows is a whole prompt with its time). Keys by which aiperf or dynamo change what is sent are
refused.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.strict import Strict, UserPath
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.script import Conversation, Script, Turn
from pytest_kvcache.workload.tokens import Texts, Tokenizer, message, texts

BLOCK_TOKENS = 512
#: Keys of other tools' traces that change what is sent, or when.
_CHANGING = {
    "session_id": "its rows are turns that build on each other's answers",
    "delay": "its row is sent so long after another answer",
    "delay_ms": "its row is sent so long after another answer",
    "text_input": "its row has the prompt itself",
    "messages": "its row has the prompt itself",
    "payload": "its row has the whole request",
    "tools": "its row has tools beside the prompt",
    "extra": "its row has more fields of the request",
    "priority": "its row asks for a priority",
}


class TraceLine(Strict):
    """One request of a trace; other keys are ignored.

    Args:
        timestamp: When the request came, in the trace's unit of time.
        input_length: Length of the prompt (tokens).
        output_length: Length of the answer (tokens).
        hash_ids: One id for each block of the prompt.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    timestamp: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]
    input_length: PositiveInt = Field(validation_alias=AliasChoices("input_length", "input_tokens", "isl"))
    output_length: PositiveInt = Field(validation_alias=AliasChoices("output_length", "output_tokens", "osl"))
    hash_ids: tuple[Annotated[int, Field(strict=True)], ...]

    @model_validator(mode="before")
    @classmethod
    def _nothing_else_is_asked_for(cls, data: Any) -> Any:
        for key, why in _CHANGING.items() if isinstance(data, dict) else ():
            if data.get(key) is not None:
                raise ValueError(f"{key} is not supported ({why}); take it out where it is not meant")
        return data


class MooncakeTrace(Workload):
    """Parameters of a run of a trace; `context_tokens` is the longest prompt that is sent."""

    #: The content of the file is compared (`content_digest`), not its path.
    NOT_COMPARED: ClassVar[frozenset[str]] = Workload.NOT_COMPARED | {"path"}

    FLAGS: ClassVar[Mapping[str, str]] = {
        **Workload.FLAGS,
        "trace": "path",
        "speed": "speed",
        "block_tokens": "block_tokens",
        "time_unit": "time_unit",
    }

    kind: Literal["mooncake-trace"] = "mooncake-trace"
    path: UserPath = Field(description="the trace file")
    speed: PositiveFloat = Field(default=1.0, description="a speed of 2 sends twice as fast as the trace was taken")
    block_tokens: PositiveInt = Field(default=BLOCK_TOKENS, description="tokens that a hash id stands for")
    time_unit: Literal["", "ms", "s"] = Field(
        default="", description="unit of the timestamps: ms where they are whole numbers and nothing is said"
    )

    def check(self) -> None:
        """Read the whole trace once.

        Raises:
            ConfigError: The trace is unsound (the message names file and line) or has no request that is short enough.
        """
        lines = list(self._lines())
        if not any(line.input_length <= min(self.context_tokens) for line in lines):
            raise ConfigError(
                f"has no request of at most {min(self.context_tokens)} tokens",
                where=str(self.path),
                todo="raise workload.context_tokens",
            )

    def _lines(self) -> Iterator[TraceLine]:
        for number, line in read(self.path, self.block_tokens):
            if not self.time_unit and not line.timestamp.is_integer():
                raise ConfigError(
                    f"timestamp: {line.timestamp:g} has a fraction, so that it may be seconds",
                    where=f"{self.path}: line {number}",
                    todo='say workload.time_unit = "s" or "ms"',
                )
            yield line

    @functools.cached_property
    def decodes(self) -> bool:
        """Whether an answer of the trace has more than one token; `check` says what is wrong with the file."""
        try:
            return any(line.output_length > 1 for line in self._lines())
        except ConfigError:
            return True

    @functools.cached_property
    def content_digest(self) -> str:
        """The SHA-256 of the trace."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sent(self, context_tokens: int) -> dict[str, Any]:
        """Return all that decides the requests; Mooncake's own block size and unit are as if nothing said them."""
        keys = super().sent(context_tokens)
        for key, usual in (("block_tokens", BLOCK_TOKENS), ("time_unit", "")):
            if keys[key] == usual:
                del keys[key]
        return keys

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run of those requests that fit into `context_tokens`."""
        if tokenizer is None:
            raise AssertionError("the workload asked for a tokenizer")
        source = texts(tokenizer, seed=self.seed)
        lines = sorted(self._lines(), key=lambda line: line.timestamp)
        first = lines[0].timestamp if lines else 0.0
        second = self.speed * (1.0 if self.time_unit == "s" else 1e3)
        block = functools.cache(lambda hash_id, words: source.late(words, first_user, "block", hash_id))
        conversations: list[Conversation] = []
        left = LeftOut(
            longest=min(context_tokens, tokenizer.max_model_len or math.inf), shortest=source.first_overhead + 1
        )
        for line in lines:
            at_s = (line.timestamp - first) / second
            if at_s >= self.duration_s or not left.takes(line, tokenizer.max_model_len):
                continue
            parts = tuple(block(*each) for each in _blocks(line, source, self.block_tokens))
            turn = Turn(1, at_s, (message("user", *parts),), line.output_length, line.input_length)
            conversations.append(Conversation(first_user + len(conversations) + 1, (turn,)))
        if not conversations:
            raise RunError(f"nothing is left to send: {left.words}", where=str(self.path))
        return Script(tuple(conversations), self.plain_warm_up(first_user), left_out=left.words)


@dataclass
class LeftOut:
    """Requests of a trace that are not sent.

    Args:
        longest: Longest prompt that is sent (tokens).
        shortest: Shortest one, which the chat template leaves room for.
    """

    longest: float
    shortest: int
    long: int = 0
    short: int = 0
    tokens: int = 0
    all_tokens: int = 0

    def takes(self, line: TraceLine, max_model_len: int | None) -> bool:
        """Return whether a request can be sent, and count it where it cannot."""
        self.all_tokens += line.input_length
        too_long = line.input_length > self.longest
        if max_model_len is not None:
            too_long = too_long or line.input_length + line.output_length > max_model_len
        too_short = line.input_length < self.shortest
        self.long += too_long
        self.short += too_short
        self.tokens += line.input_length if too_long or too_short else 0
        return not (too_long or too_short)

    @property
    def words(self) -> str:
        """What was left out, for people; "" for nothing."""
        if not self.long and not self.short:
            return ""
        return (
            f"{self.long} requests are longer than {self.longest:g} tokens, or than the model takes with their "
            f"answers, and {self.short} are shorter than the chat template ({self.shortest - 1}): "
            f"{self.tokens / self.all_tokens:.2%} of the prompt tokens are left out"
        )


def _blocks(line: TraceLine, source: Texts, size: int) -> list[tuple[int, int]]:
    """Return each block's hash id and length in words; the last blocks are shorter by the chat template's tokens."""
    lengths = [size] * len(line.hash_ids)
    lengths[-1] = line.input_length - size * (len(line.hash_ids) - 1)
    missing = source.first_overhead
    for i in reversed(range(len(lengths))):
        taken = min(lengths[i], missing)
        lengths[i] -= taken
        missing -= taken
    return [(hash_id, words) for hash_id, words in zip(line.hash_ids, lengths, strict=True) if words]


def read(path: Path, block_tokens: int = BLOCK_TOKENS) -> Iterator[tuple[int, TraceLine]]:
    """Yield the requests of the trace, each with the number of its line.

    Raises:
        ConfigError: The file cannot be read, or a line is malformed; the message names file, line and key.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, _line(text, f"{path}: line {number}", block_tokens)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None


def _line(text: str, where: str, block_tokens: int) -> TraceLine:
    try:
        line = TraceLine.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        raise ConfigError(f"{key}: {first['msg'].removeprefix('Value error, ')}", where=where) from None
    blocks = -(-line.input_length // block_tokens)
    if len(line.hash_ids) != blocks:
        raise ConfigError(
            f"hash_ids: {len(line.hash_ids)}, but {line.input_length} tokens are {blocks} blocks of {block_tokens}",
            where=where,
            todo="say workload.block_tokens, as 16 for Bailian's traces",
        )
    return line
