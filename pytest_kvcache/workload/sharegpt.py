"""Conversations from a ShareGPT-style file, on the steady schedule of the multi-round workload.

The file is a JSON array of objects, or JSON objects one after the other (JSON lines). An object is a conversation in
one of these forms:

- `{"conversations": [{"from": "human" | "gpt", "value": "…"}, …]}`, as in ShareGPT,
- `{"messages": [{"role": "user" | "assistant", "content": "…"}, …]}`, as in the chat API, and the same with the key
  `conversation`, as in WildChat.

Each user has a conversation of its own, in the order of the file; the loads of two context lengths have none in common,
so that the second finds nothing of the first in a cache. The history carries the file's answers, so that runs repeat to
the byte. An answer is as long as the one in the file (`num_tokens` where the file has it, else counted by the served
tokenizer), at most `answer_tokens`. A conversation whose prompts grow beyond the run's context length is left out. The
file is read as far as a run needs, one conversation at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import ijson
from pydantic import Field, PositiveInt

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.strict import UserPath
from pytest_kvcache.workload.schedule import Due
from pytest_kvcache.workload.script import Message, Script, Turn
from pytest_kvcache.workload.steady import SteadyWorkload
from pytest_kvcache.workload.tokens import Tokenizer

_USER, _ASSISTANT = "user", "assistant"
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), _USER),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "claude", "bot", "model"), _ASSISTANT),
}
#: Keys of the list of messages, each with the keys of a message's role and text.
_FORMS = {
    "conversations": (("from", "role"), ("value", "content")),
    "messages": (("role", "from"), ("content", "value")),
    "conversation": (("role", "from"), ("content", "value")),
}
_BOM = b"\xef\xbb\xbf"


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
        """Read as much of the file as the runs of all lengths need.

        Raises:
            ConfigError: The file is unsound (the message names file and entry) or has too few conversations.
        """
        needed = self._needed * len(self.context_tokens)
        found, left = 0, LeftOut()
        for _ in self._long_enough(left):
            found += 1
            if found == needed:
                return
        each = f" at each of {len(self.context_tokens)} lengths" if len(self.context_tokens) > 1 else ""
        raise ConfigError(
            f"has {found} conversations of {self.rounds} rounds; the run needs {self._needed}{each}, one for each of "
            f"its users{left.words}",
            where=str(self.path),
            todo="lower workload.users, workload.rounds or workload.duration_s, or name a larger file",
        )

    @property
    def _needed(self) -> int:
        """How many users a run has, from its first to its last."""
        return len(self._users(0))

    def _long_enough(self, left: LeftOut) -> Iterator[list[Saying]]:
        for sayings in read(self.path, left):
            if len(sayings) // 2 >= self.rounds:
                yield sayings
            else:
                left.short += 1

    @cached_property
    def content_digest(self) -> str:
        """The SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run of the length's own conversations that fit into `context_tokens`."""
        if tokenizer is None:
            raise AssertionError("the workload asked for a tokenizer")
        talks: list[_Talk] = []
        own = self.context_tokens.index(context_tokens) if context_tokens in self.context_tokens else 0
        for number, sayings in enumerate(self._long_enough(LeftOut())):
            if number % len(self.context_tokens) == own:
                talk = self._talk(sayings[: 2 * self.rounds], tokenizer, context_tokens)
                talks += [talk] if talk is not None else []
                if len(talks) == self._needed:
                    break
        else:
            raise RunError(
                f"{len(talks)} conversations of {self.rounds} rounds fit into {context_tokens} tokens; the run needs "
                f"{self._needed}, one for each of its users",
                where=str(self.path),
                todo="raise workload.context_tokens, lower workload.users or workload.duration_s, or name a larger "
                "file",
            )
        place = {user: at for at, user in enumerate(sorted(self._users(first_user)))}

        def turn(due: Due) -> Turn:
            talk = talks[place[due.user]]
            return Turn(due.round, due.at_s, talk.messages[: 2 * due.round - 1], talk.answers[due.round - 1])

        return self.steady_script(turn, first_user=first_user, warm_up=self.plain_warm_up(first_user))

    def _users(self, first_user: int) -> set[int]:
        return {due.user for before in (True, False) for due in self.due(first_user=first_user, before=before)}

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


@dataclass
class LeftOut:
    """Conversations of a file that no run can use.

    Args:
        roles: How many had a message of this role where user and assistant should take turns.
        turns: How many had two messages of one side in a row.
        short: How many had too few rounds.
    """

    roles: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    short: int = 0

    @property
    def words(self) -> str:
        """What was left out, for people; "" for nothing."""
        found = [f"{self.short} are shorter"] if self.short else []
        found += [f"{self.turns} have two messages of one side in a row"] if self.turns else []
        if self.roles:
            named = ", ".join(f"{count} {role}" for role, count in self.roles.most_common(6))
            found.append(f"some have other roles than {', '.join(sorted(_ROLES))}: {named}")
        return f" ({'; '.join(found)})" if found else ""


def read(path: Path, left: LeftOut | None = None) -> Iterator[list[Saying]]:
    """Yield each conversation of the file from its first question on, if user and assistant take turns in it.

    Args:
        path: The file.
        left: Counts those that do not.

    Raises:
        ConfigError: The file cannot be read, or an entry is malformed; the message names file and entry, from 1.
    """
    left = LeftOut() if left is None else left
    for number, entry in _entries(path):
        where = f"{path}: entry {number}"
        key = next((name for name in _FORMS if isinstance(entry, dict) and isinstance(entry.get(name), list)), None)
        if key is None:
            names = ", ".join(f'"{name}"' for name in _FORMS)
            raise ConfigError(f"is not an object with a list of messages ({names})", where=where)
        sayings = [_saying(item, _FORMS[key], where) for item in entry[key]]
        while sayings and sayings[0].role != _USER:
            del sayings[0]
        wrong = next((s for i, s in enumerate(sayings) if s.role != (_USER, _ASSISTANT)[i % 2]), None)
        if wrong is None:
            yield sayings
        elif wrong.role in {_USER, _ASSISTANT}:
            left.turns += 1
        else:
            left.roles[wrong.role[:40]] += 1


def _saying(item: Any, form: tuple[tuple[str, ...], tuple[str, ...]], where: str) -> Saying:
    roles, texts = form
    text = next((item[key] for key in texts if key in item), None) if isinstance(item, dict) else None
    if isinstance(text, list):  # the chat API's parts
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    if not isinstance(text, str):
        raise ConfigError(f'has a message without text ("{texts[0]}")', where=where)
    role = str(next((item[key] for key in roles if key in item), "none"))
    tokens = item.get("num_tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0):
        raise ConfigError(f"num_tokens is {tokens!r}, not a count", where=where)
    return Saying(_ROLES.get(role.lower(), role), text, tokens)


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the entries of a JSON array, or JSON values one after the other, each with its number from 1."""
    number = 0
    try:
        with path.open("rb") as file:
            start = _start(file)
            values = ijson.items(file, "item" if start == b"[" else "", use_float=True, multiple_values=start != b"[")
            for number, entry in enumerate(values if start else (), start=1):
                yield number, entry
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None
    except (ijson.JSONError, ValueError, OverflowError) as error:
        said = " ".join(str(error).split())[:120]
        raise ConfigError(f"is not JSON: {said}", where=f"{path}: entry {number + 1}") from None


def _start(file: IO[bytes]) -> bytes:
    """Put the file behind a byte order mark, and return its first byte that is no space."""
    head = file.read(1 << 16)
    mark = len(_BOM) if head.startswith(_BOM) else 0
    file.seek(mark)
    return head[mark:].lstrip()[:1]
