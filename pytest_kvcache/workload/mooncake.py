"""Requests from a Mooncake-style trace.

It has a JSON object a line: `timestamp` (ms), `input_length`, `output_length`, `hash_ids`. A hash id stands for a block
of 512 tokens and all that comes before it: equal ids at the start mean equal prefixes, and nothing else is known of the
text. Block i of a prompt becomes 512 words that follow from its id. Requests are sent at their times, divided by
`speed`; those whose prompt is longer than the run's context length are left out.

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
    """One request of a trace; keys beside these are ignored.

    Args:
        timestamp: When it came (ms).
        input_length: Of its prompt (tokens).
        output_length: Of its answer (tokens).
        hash_ids: One for each block of the prompt.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    timestamp: NonNegativeFloat
    input_length: PositiveInt
    output_length: PositiveInt
    hash_ids: tuple[Annotated[int, Field(strict=True)], ...]


class MooncakeTrace(Workload):
    """Parameters of a run of a trace; `context_tokens` is the longest prompt that is sent."""

    #: What the file holds is compared (`content_digest`), and not where it lies.
    NOT_COMPARED: ClassVar[frozenset[str]] = Workload.NOT_COMPARED | {"path"}

    kind: Literal["mooncake-trace"] = "mooncake-trace"
    path: UserPath = Field(description="the trace")
    speed: PositiveFloat = Field(default=1.0, description="2 sends twice as fast as the trace was taken")

    def check(self) -> None:
        """Read the whole trace once.

        Raises:
            ConfigError: Naming file and line.
        """
        lines = list(read(self.path))
        if not any(line.input_length <= min(self.context_tokens) for line in lines):
            raise ConfigError(
                f"has no request of at most {min(self.context_tokens)} tokens",
                where=str(self.path),
                todo="raise workload.context_tokens",
            )

    @functools.cached_property
    def content_digest(self) -> str:
        """The trace's SHA-256."""
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
    """Return hash id and length in words of each block; the template's tokens are taken from the last ones."""
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
        ConfigError: The file cannot be read, or a line is malformed; with file, line and key.
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
