"""Conversations from a ShareGPT-style file, on the steady schedule of the multi-round workload.

The file is a JSON array of objects, or has one JSON object on each line. An object is a conversation:
`{"conversations": [{"from": "human" | "gpt", "value": "…"}, …]}`. User n has the n-th conversation that is long enough;
the history carries the file's answers, so that runs repeat to the byte. An answer is as long as the one in the file
(`num_tokens` where the file has it, else counted by the served tokenizer), at most `answer_tokens`. A conversation
whose prompts grow beyond the run's context length is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.strict import UserPath
from pytest_kvcache.workload.schedule import Due
from pytest_kvcache.workload.script import Message, Script, Turn
from pytest_kvcache.workload.steady import SteadyWorkload
from pytest_kvcache.workload.tokens import Tokenizer

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"}


@dataclass(frozen=True)
class Saying:
    """One message of the file.

    Args:
        role: `user` or `assistant`.
        text: Text of the message.
        tokens: Length of the message, where the file has it.
    """

    role: str
    text: str
    tokens: int | None = None


class ShareGpt(SteadyWorkload):
    """Parameters of a run of a ShareGPT-style file; conversations of fewer than `rounds` rounds are left out."""

    #: The content of the file is compared (`content_digest`), not its path.
    NOT_COMPARED: ClassVar[frozenset[str]] = SteadyWorkload.NOT_COMPARED | {"path"}

    kind: Literal["sharegpt"] = "sharegpt"
    path: UserPath = Field(description="the ShareGPT-style file")
    answer_tokens: PositiveInt = Field(description="length of the longest answer")

    @property
    def decodes(self) -> bool:
        """Whether answers may have more than one token."""
        return self.answer_tokens > 1

    def check(self) -> None:
        """Read the whole file once.

        Raises:
            ConfigError: The file is unsound (the message names file and line) or has too few conversations.
        """
        long_enough = sum(1 for sayings in read(self.path) if _rounds(sayings) >= self.rounds)
        if long_enough < self.users:
            raise ConfigError(
                f"has {long_enough} conversations of {self.rounds} rounds, for {self.users} users",
                where=str(self.path),
                todo="lower workload.users or workload.rounds",
            )

    @cached_property
    def content_digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run of those conversations that fit into `context_tokens`."""
        if tokenizer is None:
            raise AssertionError("the workload asked for a tokenizer")
        talks = [
            talk
            for sayings in read(self.path)
            if _rounds(sayings) >= self.rounds
            and (talk := self._talk(sayings[: 2 * self.rounds], tokenizer, context_tokens)) is not None
        ]
        if len(talks) < self.users:
            raise RunError(
                f"{len(talks)} conversations of {self.rounds} rounds fit into {context_tokens} tokens, "
                f"for {self.users} users",
                where=str(self.path),
                todo="raise workload.context_tokens, or lower workload.users",
            )

        def turn(due: Due) -> Turn:
            talk = talks[(due.user - first_user - 1) % len(talks)]
            return Turn(due.round, due.at_s, talk.messages[: 2 * due.round - 1], talk.answers[due.round - 1])

        return self.steady_script(turn, first_user=first_user)

    def _talk(self, sayings: list[Saying], tokenizer: Tokenizer, limit: int) -> _Talk | None:
        """Return a conversation with the lengths of its answers (tokens), None where the conversation is too long."""
        messages = tuple(Message(s.role, (s.text,)) for s in sayings)
        if tokenizer.count(messages[:-1]) > limit:
            return None
        alone = tokenizer.count([Message("user", ("",))])
        lengths = (
            s.tokens if s.tokens is not None else tokenizer.count([Message("user", (s.text,))]) - alone
            for s in sayings[1::2]
        )
        return _Talk(messages, tuple(max(1, min(length, self.answer_tokens)) for length in lengths))


@dataclass(frozen=True)
class _Talk:
    messages: tuple[Message, ...]
    answers: tuple[int, ...]


def read(path: Path) -> Iterator[list[Saying]]:
    """Yield each conversation of the file from its first question on, if user and assistant take turns in it.

    Raises:
        ConfigError: The file cannot be read, or an entry is malformed; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None
    for line, entry in _entries(text, path):
        where = f"{path}: line {line}"
        talk = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(talk, list):
            raise ConfigError('is not an object with a list "conversations"', where=where)
        sayings = [_saying(item, where) for item in talk]
        while sayings and sayings[0].role != "user":
            del sayings[0]
        taking_turns = [s for i, s in enumerate(sayings) if s.role == ("user", "assistant")[i % 2]]
        if len(taking_turns) == len(sayings):
            yield sayings


def _saying(item: Any, where: str) -> Saying:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise ConfigError('has a message without text ("value")', where=where)
    role = _ROLES.get(str(item.get("from")))
    tokens = item.get("num_tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0):
        raise ConfigError(f"num_tokens is {tokens!r}, not a count", where=where)
    # Other roles are a system's or a tool's: `read` leaves out a conversation with one after its first question.
    return Saying(role or "other", item["value"], tokens)


def _entries(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each entry of a JSON array or of JSON lines, with the line on which it begins."""
    decoder = json.JSONDecoder()
    at, line = 0, 1
    in_array = text.lstrip()[:1] == "["
    skipped = " \t\r\n," + ("[" if in_array else "")
    while True:
        start = at
        while at < len(text) and text[at] in skipped:
            at += 1
        line += text.count("\n", start, at)
        skipped = " \t\r\n,"
        if at >= len(text) or (in_array and text[at] == "]"):
            if in_array and at >= len(text):
                raise ConfigError("the array has no end", where=f"{path}: line {line}")
            return
        try:
            entry, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            number = getattr(error, "lineno", line)
            raise ConfigError(f"is not JSON: {getattr(error, 'msg', error)}", where=f"{path}: line {number}") from None
        yield line, entry
        line += text.count("\n", at, end)
        at = end


def _rounds(sayings: list[Saying]) -> int:
    return len(sayings) // 2
