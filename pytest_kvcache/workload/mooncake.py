"""Requests from a Mooncake-style trace.

The trace has one JSON object on each line: `timestamp` (ms), `input_length`, `output_length`, `hash_ids`. A hash id
stands for a block of 512 tokens and all that comes before the block: equal ids at the start of two prompts mean equal
prefixes, and nothing else is known of the text. Each block becomes 512 words that follow from its id. A request is sent
as long after the first request as in the trace, divided by `speed`; requests whose prompt is longer than the run's
context length are left out.

Source: Mooncake (Qin et al., FAST 2025) and its published traces.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.strict import Strict, UserPath
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.script import Conversation, Script, Turn
from pytest_kvcache.workload.tokens import Texts, Tokenizer, message, texts

BLOCK_TOKENS = 512


class TraceLine(Strict):
    """One request of a trace; other keys are ignored.

    Args:
        timestamp: When the request came (ms).
        input_length: Length of the prompt (tokens).
        output_length: Length of the answer (tokens).
        hash_ids: One id for each block of the prompt.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    timestamp: NonNegativeFloat
    input_length: PositiveInt
    output_length: PositiveInt
    hash_ids: tuple[Annotated[int, Field(strict=True)], ...]


class MooncakeTrace(Workload):
    """Parameters of a run of a trace; `context_tokens` is the longest prompt that is sent."""

    #: The content of the file is compared (`content_digest`), not its path.
    NOT_COMPARED: ClassVar[frozenset[str]] = Workload.NOT_COMPARED | {"path"}

    kind: Literal["mooncake-trace"] = "mooncake-trace"
    path: UserPath = Field(description="the trace file")
    speed: PositiveFloat = Field(default=1.0, description="a speed of 2 sends twice as fast as the trace was taken")

    def check(self) -> None:
        """Read the whole trace once.

        Raises:
            ConfigError: The trace is unsound (the message names file and line) or has no request that is short enough.
        """
        lines = list(read(self.path))
        if not any(line.input_length <= min(self.context_tokens) for line in lines):
            raise ConfigError(
                f"has no request of at most {min(self.context_tokens)} tokens",
                where=str(self.path),
                todo="raise workload.context_tokens",
            )

    @functools.cached_property
    def decodes(self) -> bool:
        """Whether an answer of the trace has more than one token; `check` says what is wrong with the file."""
        try:
            return any(line.output_length > 1 for line in read(self.path))
        except ConfigError:
            return True

    @functools.cached_property
    def content_digest(self) -> str:
        """The SHA-256 of the trace."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run of those requests that fit into `context_tokens`."""
        if tokenizer is None:
            raise AssertionError("the workload asked for a tokenizer")
        source = texts(tokenizer, seed=self.seed)
        lines = sorted(read(self.path), key=lambda line: line.timestamp)
        first = lines[0].timestamp if lines else 0.0
        block = functools.cache(lambda hash_id, words: source.words(words, first_user, "block", hash_id))
        conversations: list[Conversation] = []
        for line in lines:
            at_s = (line.timestamp - first) / 1e3 / self.speed
            if line.input_length <= context_tokens and at_s < self.duration_s:
                parts = tuple(block(*each) for each in _blocks(line, source, self.path))
                turn = Turn(1, at_s, (message("user", *parts),), line.output_length, line.input_length)
                conversations.append(Conversation(first_user + len(conversations) + 1, (turn,)))
        return Script(tuple(conversations))


def _blocks(line: TraceLine, source: Texts, path: Path) -> list[tuple[int, int]]:
    """Return each block's hash id and length in words; the last blocks are shorter by the chat template's tokens."""
    lengths = [BLOCK_TOKENS] * len(line.hash_ids)
    lengths[-1] = line.input_length - BLOCK_TOKENS * (len(line.hash_ids) - 1)
    missing = source.first_overhead
    for i in reversed(range(len(lengths))):
        taken = min(lengths[i], missing)
        lengths[i] -= taken
        missing -= taken
    if missing or not sum(lengths):
        raise RunError(
            f"a prompt of {line.input_length} tokens is shorter than the chat template ({source.first_overhead})",
            where=str(path),
            todo="take such requests out of the trace",
        )
    return [(hash_id, words) for hash_id, words in zip(line.hash_ids, lengths, strict=True) if words]


def read(path: Path) -> Iterator[TraceLine]:
    """Yield the requests of the trace.

    Raises:
        ConfigError: The file cannot be read, or a line is malformed; the message names file, line and key.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _line(text, f"{path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None


def _line(text: str, where: str) -> TraceLine:
    try:
        line = TraceLine.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        raise ConfigError(f"{key}: {first['msg'].removeprefix('Value error, ')}", where=where) from None
    blocks = -(-line.input_length // BLOCK_TOKENS)
    if len(line.hash_ids) != blocks:
        raise ConfigError(
            f"hash_ids: {len(line.hash_ids)}, but {line.input_length} tokens are {blocks} blocks of {BLOCK_TOKENS}",
            where=where,
        )
    return line
