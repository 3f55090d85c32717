"""Conversations from a ShareGPT-style file (`conversations.py`), on the steady schedule of the multi-round workload.

Each user has a conversation, in the order of the file; the loads of two context lengths have none in common, and no
first question either, so that the second finds nothing of the first in a cache. The history carries the file's answers,
so that runs repeat to the byte. An answer is as long as the one in the file (`num_tokens` where the file has it, else
counted by the served tokenizer), at most `answer_tokens`. A conversation whose prompts grow beyond the run's context
length, or beyond what the model takes, is left out. The file is read and tokenized as far as a run needs, one
conversation at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.strict import UserPath
from pytest_kvcache.workload.conversations import LeftOut, Saying, read
from pytest_kvcache.workload.schedule import Due
from pytest_kvcache.workload.script import Message, Script, Turn
from pytest_kvcache.workload.steady import SteadyWorkload
from pytest_kvcache.workload.tokens import Tokenizer

__all__ = ["LeftOut", "Saying", "ShareGpt", "read"]

#: A conversation with more characters for each token than any language has is too long without being counted.
_CHARACTERS_A_TOKEN = 16


class ShareGpt(SteadyWorkload):
    """Parameters of a run of a ShareGPT-style file; conversations of fewer than `rounds` rounds are left out."""

    #: The content of the file is compared (`content_digest`), not its path.
    NOT_COMPARED: ClassVar[frozenset[str]] = SteadyWorkload.NOT_COMPARED | {"path"}
    GENERATOR: ClassVar[int] = 2
    FLAGS: ClassVar[Mapping[str, str]] = {
        **SteadyWorkload.FLAGS,
        "sharegpt": "path",
        "answer_len": "answer_tokens",
        "init_user_id": "skip_conversations",
    }

    kind: Literal["sharegpt"] = "sharegpt"
    path: UserPath = Field(description="the ShareGPT-style file")
    answer_tokens: PositiveInt = Field(description="length of the longest answer")
    skip_conversations: int = Field(
        default=0, ge=0, description="conversations that other loads on the same servers have [--init-user-id]"
    )

    @property
    def decodes(self) -> bool:
        """Whether answers may have more than one token."""
        return self.answer_tokens > 1

    def check(self) -> None:
        """Read as much of the file as the runs of all lengths need.

        Raises:
            ConfigError: The file is unsound (the message names file and entry) or has too few conversations.
        """
        found, left = dict.fromkeys(self.context_tokens, 0), LeftOut()
        for length, sayings in self._of_lengths(left):
            if _is_too_long(sayings, length):
                left.long += 1
                continue
            found[length] += 1
            if min(found.values()) >= self._needed:
                return
        each = f" at each of {len(found)} lengths" if len(found) > 1 else ""
        own = f": {', '.join(f'{count} for {length}' for length, count in found.items())}" if each else ""
        left_out = f" ({left.reasons})" if left.count else ""
        raise ConfigError(
            f"has {sum(found.values())} conversations of {self.rounds} rounds; the run needs {self._needed}{each}, "
            f"{self._for_whom}{own}{left_out}",
            where=str(self.path),
            todo="lower workload.users, workload.rounds, workload.qps or workload.duration_s, or name a larger file",
        )

    @property
    def _needed(self) -> int:
        """How many users a run has, from its first to its last, and those whose conversations are passed over."""
        return len(self._users(0)) + self.skip_conversations

    @property
    def _for_whom(self) -> str:
        before = f", after {self.skip_conversations} that are skipped" if self.skip_conversations else ""
        return f"one for each of its users{before}"

    def _of_lengths(self, left: LeftOut) -> Iterator[tuple[int, list[Saying]]]:
        """Yield what is used of each conversation that has enough rounds, with the length whose own it is.

        Lengths take turns. Conversations with the same first question are of one length, whose run thereby has the
        cache hits that the file's own repetitions bring.
        """
        owners: dict[bytes, int] = {}
        for sayings in read(self.path, left, rounds=self.rounds):
            first = hashlib.blake2b((sayings[0].text or "").encode(), digest_size=16).digest()
            own = owners.setdefault(first, len(owners) % len(self.context_tokens))
            yield self.context_tokens[own], sayings[: 2 * self.rounds]

    @cached_property
    def content_digest(self) -> str:
        """The SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sent(self, context_tokens: int) -> dict[str, Any]:
        """Return all that decides the requests; where lengths share a file, this has which of them has which part."""
        keys = super().sent(context_tokens)
        if not self.skip_conversations:
            del keys["skip_conversations"]
        if context_tokens not in self.context_tokens:
            return keys | {"part": "none"}
        own = self.context_tokens.index(context_tokens)
        return keys | ({"part": f"{own + 1} of {len(self.context_tokens)}"} if len(self.context_tokens) > 1 else {})

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run of the length's own conversations that fit into `context_tokens`."""
        if tokenizer is None:
            raise AssertionError("the workload asked for a tokenizer")
        counts, left = _Counts(tokenizer, self.answer_tokens), LeftOut()
        talks = self._talks(context_tokens, counts, left)[self.skip_conversations :]
        place = {user: at for at, user in enumerate(sorted(self._users(first_user)))}

        def turn(due: Due) -> Turn:
            messages, sayings = talks[place[due.user]]
            answer = counts.answer(sayings[2 * due.round - 1])
            return Turn(due.round, due.at_s, messages[: 2 * due.round - 1], answer)

        script = self.steady_script(turn, first_user=first_user, warm_up=self.plain_warm_up(first_user))
        return replace(script, left_out=left.words)

    def _talks(
        self, context_tokens: int, counts: _Counts, left: LeftOut
    ) -> list[tuple[tuple[Message, ...], list[Saying]]]:
        """Return the conversations of a run's users, after those that are passed over.

        Raises:
            RunError: There are too few that fit.
        """
        found: list[tuple[tuple[Message, ...], list[Saying]]] = []
        is_listed = context_tokens in self.context_tokens
        # A length that is none of the workload's has no conversations of its own: its number makes them other ones.
        mark = () if is_listed else (f"{context_tokens}:",)
        for length, sayings in self._of_lengths(left):
            if is_listed and length != context_tokens:
                continue
            first, *others = (Message(each.role, (each.text or "",)) for each in sayings)
            messages = (replace(first, parts=(*mark, *first.parts)), *others)
            if _is_too_long(sayings, context_tokens) or not counts.fits(messages, context_tokens):
                left.long += 1
                continue
            found.append((messages, sayings))
            if len(found) == self._needed:
                return found
        left_out = f" ({left.reasons})" if left.count else ""
        raise RunError(
            f"{len(found)} conversations of {self.rounds} rounds fit into {context_tokens} tokens; the run needs "
            f"{self._needed}, {self._for_whom}{left_out}",
            where=str(self.path),
            todo="raise workload.context_tokens, lower workload.users or workload.duration_s, or name a larger file",
        )

    def _users(self, first_user: int) -> set[int]:
        return {due.user for before in (True, False) for due in self.due(first_user=first_user, before=before)}


class _Counts:
    """Lengths by the served tokenizer, each asked for once, and only where a request needs it."""

    def __init__(self, tokenizer: Tokenizer, longest_answer: int) -> None:
        self._tokenizer, self._longest_answer = tokenizer, longest_answer
        self._answers: dict[str, int] = {}

    def fits(self, messages: tuple[Message, ...], limit: int) -> bool:
        """Return whether the longest prompt of a conversation fits into `limit`, and its answer into the model."""
        count = self._tokenizer.count(messages[:-1])
        longest = self._tokenizer.max_model_len
        return count <= limit and (longest is None or count + self._longest_answer <= longest)

    def answer(self, saying: Saying) -> int:
        """Return the length of an answer to ask for (tokens)."""
        length = saying.tokens if saying.tokens is not None else self._counted(saying.text or "")
        return max(1, min(length, self._longest_answer))

    def _counted(self, text: str) -> int:
        if text not in self._answers:
            self._answers[text] = self._tokenizer.count([Message("user", (text,))]) - self._template
        return self._answers[text]

    @cached_property
    def _template(self) -> int:
        return self._tokenizer.count([Message("user", ("",))])


def _is_too_long(sayings: list[Saying], context_tokens: int) -> bool:
    """Return whether the longest prompt of a conversation is too long whatever the tokenizer."""
    return sum(len(each.text or "") for each in sayings[:-1]) > _CHARACTERS_A_TOKEN * context_tokens
